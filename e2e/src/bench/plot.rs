//! Plots of samples as SVG.

use std::path::Path;

use plotters::prelude::{
    BLACK, ChartBuilder, Color as _, IntoDrawingArea as _, LineSeries, PathElement, RGBColor, SVGBackend, WHITE,
};

use super::Samples;

const SIZE: (u32, u32) = (760, 340);
const OURS: RGBColor = RGBColor(31, 119, 180);
const BASELINE: RGBColor = RGBColor(214, 117, 39);

/// Why a plot was not drawn.
#[derive(Debug, thiserror::Error)]
#[error("cannot draw {file}: {reason}")]
pub(super) struct PlotError {
    file: String,
    reason: String,
}

/// Draws which share of the samples is at most how large.
pub(super) fn distribution(file: &Path, title: &str, unit: &str, samples: &Samples) -> Result<(), PlotError> {
    draw(file, title, unit, samples)
        .map_err(|error| PlotError { file: file.display().to_string(), reason: error.to_string() })
}

fn draw(file: &Path, title: &str, unit: &str, samples: &Samples) -> Result<(), Box<dyn std::error::Error>> {
    let largest = samples.ours.iter().chain(&samples.baseline).copied().fold(1.0, f64::max);
    let area = SVGBackend::new(file, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(48)
        .build_cartesian_2d(0.0..largest * 1.05, 0.0..100.0)?;
    chart.configure_mesh().x_desc(unit).y_desc("% of samples").draw()?;
    for (name, values, color) in [("Longhand", &samples.ours, OURS), ("baseline", &samples.baseline, BASELINE)] {
        if !values.is_empty() {
            chart
                .draw_series(LineSeries::new(steps(values), color.stroke_width(2)))?
                .label(name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], color));
        }
    }
    chart.configure_series_labels().background_style(WHITE.mix(0.8)).border_style(BLACK.mix(0.2)).draw()?;
    area.present()?;
    Ok(())
}

/// The points of an empirical distribution function, as steps.
fn steps(values: &[f64]) -> Vec<(f64, f64)> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let share = 100.0 / sorted.len() as f64;
    sorted
        .iter()
        .enumerate()
        .flat_map(|(index, value)| [(*value, index as f64 * share), (*value, (index + 1) as f64 * share)])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::steps;

    #[test]
    fn a_distribution_climbs_to_the_whole() {
        assert_eq!(steps(&[2.0, 1.0]), [(1.0, 0.0), (1.0, 50.0), (2.0, 50.0), (2.0, 100.0)]);
    }
}
