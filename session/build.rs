//! Makes the program smaller that goes into an image.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let features = std::env::var("CARGO_CFG_TARGET_FEATURE").unwrap_or_default();
    // A static program may begin anywhere in memory, and the list of what depends on that is half a megabyte unless it is packed.
    // One that is linked dynamically would need a newer glibc for it.
    if features.split(',').any(|feature| feature == "crt-static") {
        println!("cargo::rustc-link-arg-bin=session=-Wl,-z,pack-relative-relocs");
    }
}
