//! Wires: the binary `lowtide`, the only reader of arguments and environment.
//!
//! In reading order: [`args`] (what the user typed), [`config`] (what it means), [`failure`] (how it ends when it does
//! not end well), then one module a verb, and what they share: [`output`] (files that appear whole or not at all),
//! [`console`]. What serves is in [`service`], what asks a server in [`client`].

#![forbid(unsafe_code)]

mod args;
mod chain;
mod client;
mod config;
mod console;
mod demo;
mod detail;
mod doctor;
mod drive;
mod failure;
mod gpu;
mod interrupt;
mod models;
mod named_files;
mod output;
mod plan_view;
mod png_info;
mod progress;
mod pull;
mod request;
mod run;
mod service;
mod tensor_files;
mod upscale;

use args::{Cli, Command, CompletionsArgs};
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use failure::Failure;
use std::process::ExitCode;

fn main() -> ExitCode {
    match parse().and_then(|cli| cli.map_or(Ok(()), dispatch)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            console::note(&format!("error: {failure}"));
            ExitCode::from(failure.exit_code())
        }
    }
}

fn dispatch(cli: Cli) -> Result<(), Failure> {
    match cli.command {
        Command::Generate(verb) => client::generate(&verb),
        Command::Plan(args) => run::plan(&args),
        Command::Upscale(verb) => client::upscale(&verb),
        Command::Detail(verb) => client::detail(&verb),
        Command::Detect(args) => detail::detect(&args),
        Command::PngInfo(args) => png_info::run(&args),
        Command::Pull(args) => pull::run(&args),
        Command::Models(command) => models::run(&command),
        Command::Backup(args) => service::backup(&args),
        Command::Restore(args) => service::restore(&args),
        Command::Serve(args) => service::serve(&args),
        Command::Worker(args) => service::worker(&args),
        Command::Keys(args) => service::keys(&args),
        Command::Jobs(args) => client::jobs(&args),
        Command::Ps(args) => client::ps(&args),
        Command::Explain(args) => client::explain(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Config(args) => service::show(&args),
        Command::Completions(args) => completions(&args),
    }
}

/// The command line, or `None` where it asked for help or the version and got it.
fn parse() -> Result<Option<Cli>, Failure> {
    match Cli::try_parse() {
        Ok(cli) => Ok(Some(cli)),
        Err(cause) => match cause.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
                console::print(&cause.to_string())?;
                Ok(None)
            }
            ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => Err(Failure::mistake(
                "no command given; 'lowtide --help' shows them with examples",
            )),
            _ => Err(Failure::mistake(mistake_of(&cause.to_string()))),
        },
    }
}

/// What is wrong, in one line: the parser's message without its usage block.
fn mistake_of(message: &str) -> String {
    let told: Vec<&str> = message
        .split("\n\n")
        .filter(|part| !part.starts_with("Usage:") && !part.starts_with("For more information"))
        .map(|part| part.trim_start_matches("error: "))
        .collect();
    format!("{} (--help shows how)", failure::one_line(&told.join("; ")))
}

fn completions(args: &CompletionsArgs) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "lowtide", &mut script);
    Ok(console::print(&String::from_utf8_lossy(&script))?)
}
