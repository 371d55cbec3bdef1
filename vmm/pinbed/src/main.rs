// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The program `pinbed`; all of it is in the library.

fn main() -> std::process::ExitCode {
    pinbed::main()
}
