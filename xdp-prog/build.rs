//! Compiles the XDP program with clang and generates its skeleton, both into `OUT_DIR`.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use libbpf_cargo::SkeletonBuilder;

const SOURCE: &str = "src/bpf/ilet.bpf.c";

fn main() -> ExitCode {
    println!("cargo::rerun-if-changed=src/bpf");
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    let built = SkeletonBuilder::new()
        .source(SOURCE)
        .clang_args(clang_args())
        .build_and_generate(out_dir.join("ilet.skel.rs"));
    if let Err(error) = built {
        eprintln!("{SOURCE} does not build (it needs clang and the kernel's headers): {error:#}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
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
