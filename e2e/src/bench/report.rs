//! `docs/benchmarks.md`, rendered from the files that the benchmarks left.

use std::fmt::Write as _;
use std::path::Path;

use super::{Figure, Report, plot};
use crate::cluster::TestResult;

/// Every benchmark: the name of its file, and its heading.
pub const BENCHMARKS: [(&str, &str); 8] = [
    ("ttft", "Time to first token"),
    ("sandbox", "Sandboxes"),
    ("fleet", "Many sandboxes"),
    ("soak", "Many sandboxes' lives"),
    ("log", "The session log"),
    ("streams", "Event streams"),
    ("proxy", "The credential proxy"),
    ("sizes", "Sizes"),
];

const HEAD: &str = "# Benchmarks\n\nRendered by `make bench` from `target/bench/*.json`; do not edit. Absolute times are those of the machine \
    that ran it; what counts is the ratio to the baseline, which is measured in the same run.\n";

/// Renders the page and its plots into `docs` from the reports in `reports`. A benchmark without a report keeps its
/// part of the page as it was.
///
/// # Errors
/// When a file cannot be read or written.
pub fn render(reports: &Path, docs: &Path) -> TestResult {
    let page = docs.join("benchmarks.md");
    let old = std::fs::read_to_string(&page).unwrap_or_default();
    let mut text = HEAD.to_owned();
    std::fs::create_dir_all(docs.join("benchmarks"))?;
    for (name, heading) in BENCHMARKS {
        let file = reports.join(format!("{name}.json"));
        if !file.exists() {
            text.push_str(&kept(&old, heading));
            continue;
        }
        let report: Report = serde_json::from_str(&std::fs::read_to_string(&file)?)?;
        text.push_str(&section(name, heading, &report));
        if let Some(figure) = report.results.iter().find(|figure| figure.samples.ours.len() > 1) {
            let image = docs.join("benchmarks").join(format!("{name}.svg"));
            plot::distribution(&image, heading, &figure.unit, &figure.samples)?;
            let _ = writeln!(text, "\n![{heading}: distribution](benchmarks/{name}.svg)");
        }
    }
    std::fs::write(&page, text)?;
    Ok(())
}

fn section(name: &str, heading: &str, report: &Report) -> String {
    let mut text = format!(
        "\n## {heading}\n\n`make bench BENCH={name}`, {}. {}\n\n| metric | Longhand | baseline | ratio | goal | met |\n|---|---|---|---|---|---|\n",
        report.date.get(..10).unwrap_or(&report.date),
        report.method
    );
    for figure in &report.results {
        text.push_str(&row(figure));
    }
    text
}

fn row(figure: &Figure) -> String {
    let unit = &figure.unit;
    let shown = |value: f64| if value < 10.0 { format!("{value:.2} {unit}") } else { format!("{value:.1} {unit}") };
    let value = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), shown);
    let ratio = figure.ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"));
    let met = figure.met.map_or("-", |met| if met { "yes" } else { "no" });
    let goal = figure.goal.as_deref().unwrap_or("-");
    format!(
        "| {} | {} | {} | {ratio} | {goal} | {met} |\n",
        figure.metric,
        value(Some(figure.ours)),
        value(figure.baseline)
    )
}

/// The part of the page under a heading, with the heading; nothing when there is none.
fn kept(page: &str, heading: &str) -> String {
    let start = format!("\n## {heading}\n");
    let Some(at) = page.find(&start) else { return String::new() };
    let rest = &page[at + start.len()..];
    let end = rest.find("\n## ").unwrap_or(rest.len());
    format!("{start}{}", &rest[..end])
}

#[cfg(test)]
mod tests {
    use super::super::{Goal, Samples};
    use super::{Figure, Report, kept, section};

    #[test]
    fn a_section_shows_each_figure_with_its_goal() {
        let samples = Samples { ours: vec![100.0], baseline: vec![90.0] };
        let results = vec![Figure::percentile("first call, p50", "ms", &samples, 50.0, Goal::Ratio(1.25))];
        let report = Report { date: "2026-01-02T03:04:05Z".to_owned(), method: "As is.".to_owned(), results };
        let text = section("sandbox", "First tool call", &report);
        assert!(text.contains("`make bench BENCH=sandbox`, 2026-01-02. As is."), "{text}");
        assert!(text.contains("| first call, p50 | 100.0 ms | 90.0 ms | 1.11 | <= 1.25 x baseline | yes |"), "{text}");
    }

    #[test]
    fn a_part_of_the_page_is_found() {
        let page = "# B\n\n## One\n\n1\n\n## Two\n\n2\n";
        assert_eq!(kept(page, "One"), "\n## One\n\n1\n");
        assert_eq!(kept(page, "Two"), "\n## Two\n\n2\n");
        assert_eq!(kept(page, "Three"), "");
    }
}
