//! Compiles services.proto; the messages themselves are berth-proto's.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    println!("cargo:rerun-if-changed=../proto/proto");
    let descriptors = protox::compile(["services.proto"], ["proto", "../proto/proto"])?;
    tonic_prost_build::configure()
        .extern_path(".berth.link.v1", "::berth_proto::wire")
        .extern_path(".berth.client.v1", "::berth_proto::client")
        .build_transport(false)
        .compile_fds(descriptors)?;
    Ok(())
}
