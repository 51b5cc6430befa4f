//! Lines on stdout and stderr. `println!` would panic when the reader of a pipe has gone.

use std::{
    fmt,
    io::{self, Write},
};

use crate::exit::Failure;

/// Whether somebody reads what is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reader {
    /// As far as can be told.
    There,
    /// The pipe is closed: nothing printed from now on is read.
    Gone,
}

/// Prints a result, at once.
///
/// # Errors
/// When stdout cannot be written for another reason than that its reader has gone.
pub fn print(line: fmt::Arguments<'_>) -> io::Result<Reader> {
    print_to(&mut io::stdout().lock(), line)
}

/// What a command whose work is done by printing ends with: a reader who has gone does not make it fail.
///
/// # Errors
/// When stdout could not be written.
pub fn written(printed: io::Result<Reader>) -> Result<(), Failure> {
    match printed {
        Ok(_) => Ok(()),
        Err(error) => Err(Failure::Start(anyhow::Error::new(error).context("writing to stdout"))),
    }
}

/// Prints a remark to stderr. When that fails, nobody is left to be told.
pub fn note(line: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

fn print_to(out: &mut impl Write, line: fmt::Arguments<'_>) -> io::Result<Reader> {
    match writeln!(out, "{line}").and_then(|()| out.flush()) {
        Ok(()) => Ok(Reader::There),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Reader::Gone),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fails(io::ErrorKind);

    impl Write for Fails {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_closed_pipe_is_an_end_and_a_full_disk_is_an_error() {
        let mut out = Vec::new();
        assert_eq!(print_to(&mut out, format_args!("a {}", 1)).expect("is memory"), Reader::There);
        assert_eq!(out, b"a 1\n");
        let gone = print_to(&mut Fails(io::ErrorKind::BrokenPipe), format_args!("a"));
        assert_eq!(gone.expect("is no error"), Reader::Gone);
        let full = print_to(&mut Fails(io::ErrorKind::StorageFull), format_args!("a"));
        assert_eq!(full.expect_err("is one").kind(), io::ErrorKind::StorageFull);
    }
}
