//! Compiles the XDP program with clang and generates its skeleton, both into `OUT_DIR`.

use std::env;
use std::error::Error;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use libbpf_cargo::SkeletonBuilder;

const SOURCE: &str = "src/bpf/ilet.bpf.c";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=src/bpf");

    let out_dir = env::var_os("OUT_DIR").ok_or("OUT_DIR is not set: run me through cargo")?;
    SkeletonBuilder::new()
        .source(SOURCE)
        .clang_args(clang_args())
        .build_and_generate(PathBuf::from(out_dir).join("ilet.skel.rs"))
        .map_err(|error| {
            format!("{SOURCE} does not build (needs clang and the kernel headers): {error:#}")
        })?;
    Ok(())
}

/// Debian keeps `asm/types.h`, which the kernel headers include, in a directory per architecture that
/// `clang -target bpf` does not search.
fn clang_args() -> Vec<OsString> {
    let mut args: Vec<OsString> = vec!["-Wall".into(), "-Wextra".into()];
    let target = env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    let include = format!("/usr/include/{target}-linux-gnu");
    if Path::new(&include).is_dir() {
        args.push("-I".into());
        args.push(include.into());
    }
    args
}
