//! One download: how far it is, and who waits for it.

use std::time::Instant;

use lowtide_core::Bytes;
use lowtide_core::job::JobId;
use lowtide_hub::{Event, Stop, Wanted};
use lowtide_server::{Download, DownloadState};

use crate::pull::Count;

/// A download.
pub(super) struct Entry {
    pub(super) wanted: Wanted,
    pub(super) state: DownloadState,
    /// Whether a person asked for it; else it is there for jobs alone.
    pub(super) by_hand: bool,
    /// Jobs that wait for it.
    pub(super) jobs: Vec<JobId>,
    /// When it was over.
    pub(super) over: Option<Instant>,
    pub(super) stop: Stop,
    files: Option<usize>,
    problem: Option<String>,
    count: Count,
}

impl Entry {
    pub(super) fn new(wanted: Wanted) -> Entry {
        Entry {
            wanted,
            state: DownloadState::Waiting,
            by_hand: false,
            jobs: Vec::new(),
            over: None,
            stop: Stop::default(),
            files: None,
            problem: None,
            count: Count::default(),
        }
    }

    /// It is over, for this reason; a thread that fetches for it stops.
    pub(super) fn end(&mut self, state: DownloadState, problem: Option<String>) {
        self.stop.ask();
        self.state = state;
        self.problem = problem;
        self.over = Some(Instant::now());
    }

    /// Takes in what happens.
    pub(super) fn heard(&mut self, event: &Event) {
        match event {
            Event::Planned {
                files,
                bytes,
                there,
                ..
            } => {
                self.state = DownloadState::Fetching;
                self.files = Some(*files);
                self.count.plan(*bytes, *there);
            }
            Event::Resumed { bytes, .. } => self.count.resumed(*bytes),
            Event::Bytes(bytes) => self.count.add(*bytes),
            Event::Lost(bytes) => self.count.lose(*bytes),
            Event::Note(_) | Event::Done { .. } => {}
        }
    }

    /// As others see it.
    pub(super) fn view(&mut self) -> Download {
        let fetching = self.state == DownloadState::Fetching;
        let speed = match fetching {
            true => self.count.speed(Instant::now()),
            false => None,
        };
        Download {
            model: self.wanted.to_string(),
            state: self.state,
            files: self.files,
            bytes: self.files.map(|_| Bytes(self.count.total())),
            there: Bytes(self.count.there()),
            per_second: speed.map(|speed| Bytes(speed as u64)),
            remaining_s: self.count.remaining(speed),
            problem: self.problem.clone(),
            jobs: self.jobs.clone(),
        }
    }
}
