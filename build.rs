//! How the binary is linked.

fn main() {
    // The loader reads the whole table of relocations at every start, and it stays in memory: packed, the
    // relative ones take 10 KiB instead of 430. (glibc 2.36 and binutils 2.38 know how.)
    println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    println!("cargo::rerun-if-changed=build.rs");
}
