//! The definitions as a whole: small enough for every way to install them, and structural.

use longhand_crds::definitions;

/// All definitions together stay below this, so that client-side apply works too (its annotation holds 256 KiB).
const LIMIT: usize = 130_000;

#[test]
fn all_definitions_together_are_small() {
    let size: usize = definitions().iter().map(|definition| serde_yaml::to_string(definition).unwrap().len()).sum();
    assert!(size < LIMIT, "{size} bytes");
}

#[test]
fn every_kind_shows_whether_it_is_ready_and_why() {
    for definition in definitions() {
        let columns: Vec<_> = definition.spec.versions[0]
            .additional_printer_columns
            .iter()
            .flatten()
            .map(|column| &*column.name)
            .collect();
        assert!(columns.ends_with(&["Ready", "Reason", "Age"]), "{columns:?}");
    }
}

#[test]
fn every_condition_list_is_a_map_by_type() {
    for definition in definitions() {
        let schema = definition.spec.versions[0].schema.as_ref().unwrap().open_api_v3_schema.as_ref().unwrap();
        let conditions = &schema.properties.as_ref().unwrap()["status"].properties.as_ref().unwrap()["conditions"];
        assert_eq!(conditions.x_kubernetes_list_map_keys.as_deref(), Some(&["type".to_owned()][..]));
    }
}
