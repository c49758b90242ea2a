//! How the binary is linked.

fn main() {
    // What the loader has to relocate, in a tenth of a megabyte's place: at every start it reads all of it, and
    // an idle service would have half a megabyte of that in memory for ever. (glibc 2.36, binutils 2.38.)
    println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    println!("cargo::rerun-if-changed=build.rs");
}
