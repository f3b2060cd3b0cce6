//! A small Jupyter kernel, built on microio. `kernel.rs` says who owns what.

mod control;
mod input;
mod kernel;
mod language;
mod message;
mod session;
mod sockets;

use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use std::{env, fs, io};

use clap::{Parser, Subcommand};
use microio::Failure;
use serde_json::json;
use tracing_subscriber::EnvFilter;

/// A small Jupyter kernel: a toy language on real sockets.
#[derive(Parser)]
#[command(version, subcommand_negates_reqs = true, args_conflicts_with_subcommands = true)]
struct Arguments {
    /// Runs the kernel with this connection file
    #[arg(short = 'f', long, value_name = "FILE", required = true)]
    connection_file: Option<PathBuf>,
    /// How long a shutdown lets cells run on before it cancels them
    #[arg(long, value_name = "SECONDS", default_value = "2", value_parser = seconds)]
    deadline: Duration,
    /// Logs more than warnings
    #[arg(short, long)]
    verbose: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Writes the kernelspec, by which Jupyter finds the kernel
    Install {
        /// Into DIR/share/jupyter/kernels, instead of the user's own directory
        #[arg(long, value_name = "DIR")]
        prefix: Option<PathBuf>,
        /// What clients call the kernel
        #[arg(long, default_value = "minikernel")]
        name: String,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = if arguments.verbose { "info,minikernel=debug,microio=debug" } else { "warn" };
    let log = tracing_subscriber::fmt().with_env_filter(EnvFilter::new(filter)).with_writer(io::stderr);
    let log = log.with_target(false).with_ansi(io::stderr().is_terminal());
    log.log_internal_errors(false).init(); // a log that nobody reads is no error
    let done = match (arguments.command, arguments.connection_file) {
        (Some(Command::Install { prefix, name }), _) => install(prefix, &name),
        (None, file) => run(&file.expect("clap requires it"), arguments.deadline),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _nobody_reads = writeln!(io::stderr(), "minikernel: error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let number = text.parse().ok().filter(|number| (0.0..=1e9).contains(number));
    number.map(Duration::from_secs_f64).ok_or_else(|| "not a number of seconds from 0 to 1e9".to_owned())
}

fn run(file: &Path, deadline: Duration) -> Result<(), Failure> {
    let failed = |cause: &dyn Display| Failure::msg(format!("connection file {}: {cause}", file.display()));
    let text = fs::read(file).map_err(|error| failed(&error))?;
    kernel::run(&serde_json::from_slice(&text).map_err(|error| failed(&error))?, deadline)
}

fn install(prefix: Option<PathBuf>, name: &str) -> Result<(), Failure> {
    let named = |variable| env::var_os(variable).map(PathBuf::from);
    let home = || named("HOME").ok_or_else(|| Failure::msg("HOME is not set: say where to by --prefix"));
    let data = match (prefix, named("JUPYTER_DATA_DIR"), named("XDG_DATA_HOME")) {
        (Some(prefix), ..) => prefix.join("share/jupyter"),
        (None, Some(data), _) => data,
        _ if cfg!(target_os = "macos") => home()?.join("Library/Jupyter"),
        (.., Some(data)) => data.join("jupyter"),
        _ => home()?.join(".local/share/jupyter"),
    };
    let (directory, program) = (data.join("kernels").join(name), env::current_exe()?);
    let spec = json!({
        "argv": [program.to_str().ok_or_else(|| Failure::msg("the program's path is not UTF-8"))?, "-f", "{connection_file}"],
        "display_name": format!("Mini ({name})"), "language": "mini", "interrupt_mode": "message",
    });
    let failed = |error: io::Error| Failure::msg(format!("cannot write {}: {error}", directory.display()));
    fs::create_dir_all(&directory).map_err(failed)?;
    fs::write(directory.join("kernel.json"), format!("{spec:#}\n")).map_err(failed)?;
    println!("installed {name} in {}", directory.display());
    Ok(())
}
