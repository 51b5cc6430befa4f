//! Compiles the .proto files without protoc: protox parses, prost writes types, pbjson writes the proto3 JSON mapping.

use std::error::Error;

use protox::prost::Message;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(["client.proto", "link.proto"], ["proto"])?;
    let encoded = descriptors.encode_to_vec();

    let mut config = prost_build::Config::new();
    config.bytes([".berth.client.v1"]);
    config.compile_fds(descriptors)?;

    pbjson_build::Builder::new()
        .register_descriptors(&encoded)?
        .ignore_unknown_fields()
        .build(&[".berth.client.v1"])?;
    Ok(())
}
