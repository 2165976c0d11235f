//! Rebuilds the binary if a migration changes, because the binary embeds the migrations.

fn main() {
    println!("cargo:rerun-if-changed=migrations");
}
