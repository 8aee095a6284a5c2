//! When a model comes to the device, and when it leaves: one state machine a model, asked by jobs, hands and timers.
//!
//! Everything that can happen is an [`Event`] given to [`Life::on_event`] with the moment; what has to be done comes
//! back as [`Effect`]s. A model moves only by an [`Effect::Move`], one at a time, and never away while a job uses it:
//! there is one count of those, so that a timer, a job and a hand cannot race.

mod keep;
mod reason;

use std::time::Duration;

use crate::job::Moment;

pub use keep::{Because, KeepAlive, NotAKeepAlive, RequestRate, Rest, keeps};
pub use reason::MoveWhy;

/// Where a model is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Residency {
    /// Nowhere but in its files.
    #[default]
    Unloaded,
    /// In host memory, or on a CPU: read and checked, its pages likely cached.
    Host,
    /// On the device, ready.
    Device,
}

impl Residency {
    /// All of them, the furthest from the device first.
    pub const ALL: [Residency; 3] = [Residency::Unloaded, Residency::Host, Residency::Device];

    /// The word in answers.
    pub fn name(self) -> &'static str {
        match self {
            Residency::Unloaded => "unloaded",
            Residency::Host => "host",
            Residency::Device => "device",
        }
    }

    /// The sign in the panel: ⚪, 🟡 or 🟢.
    pub fn symbol(self) -> char {
        match self {
            Residency::Unloaded => '⚪',
            Residency::Host => '🟡',
            Residency::Device => '🟢',
        }
    }
}

/// What happens to a model when the last job that uses it is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum AfterJob {
    /// It stays until the idle timer runs out.
    #[default]
    Keep,
    /// It goes to host memory at once.
    Offload,
    /// It goes altogether at once.
    Release,
}

/// What is configured for a model, and what is known of its loading.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LifePolicy {
    /// How long it stays, unless a request says otherwise. None leaves it to `after_job` and `idle`.
    pub keep_alive: Option<KeepAlive>,
    /// What happens after a job where no keep-alive is given.
    pub after_job: AfterJob,
    /// The idle timer: after so long it goes from the device to host memory, after as long again out. None turns it off.
    pub idle: Option<Duration>,
    /// Seconds from host memory to the device.
    pub from_host_s: f64,
    /// Whether host memory has room for it at this moment: where not, it goes out instead.
    pub host_room: bool,
}

/// The idle timer where none is configured.
pub const IDLE_DEFAULT: Duration = Duration::from_secs(600);

/// After a failed move away, when to try again.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

impl Default for LifePolicy {
    fn default() -> LifePolicy {
        LifePolicy {
            keep_alive: None,
            after_job: AfterJob::Keep,
            idle: Some(IDLE_DEFAULT),
            from_host_s: 0.0,
            host_room: true,
        }
    }
}

/// A place a model is told to go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Order {
    /// To the device.
    Load,
    /// To host memory.
    Offload,
    /// Out.
    Release,
}

impl Order {
    /// Where it leads.
    pub fn to(self) -> Residency {
        match self {
            Order::Load => Residency::Device,
            Order::Offload => Residency::Host,
            Order::Release => Residency::Unloaded,
        }
    }
}

/// Something that happens to a model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Event {
    /// A job begins to use it. [`Effect::Ready`] says when it can.
    JobBegins {
        /// What the request says about keeping.
        keep_alive: Option<KeepAlive>,
    },
    /// A job that uses it is parked. The timer lets it be, but it may be moved away to make room.
    JobParks,
    /// A parked job goes on. [`Effect::Ready`] says when it can.
    JobResumes,
    /// A job that has begun with another model will use it later. The timer lets it be, but it may be moved away to make
    /// room. Then [`Event::JobResumes`], or [`Event::ParkedJobLeaves`].
    JobExpects,
    /// A job that used it is done, failed or was cancelled.
    JobEnds,
    /// A parked job will not go on here: cancelled, or saved until a hand lets it go on.
    ParkedJobLeaves,
    /// A hand asks: now if no job uses it, else as soon as none does.
    Hand(Order),
    /// It is to be there before the first job.
    Preload,
    /// Another model needs its room. Refused while a job uses it.
    MakeRoom {
        /// Where it goes.
        to: Residency,
    },
    /// The move under way is done.
    Arrived,
    /// The move under way failed: it is where it was.
    MoveFailed,
    /// Time passed.
    Tick,
}

/// What has to be done, or told.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Effect {
    /// Move it, and answer with [`Event::Arrived`] or [`Event::MoveFailed`].
    Move {
        /// Where it is.
        from: Residency,
        /// Where it goes.
        to: Residency,
        /// Why.
        why: MoveWhy,
    },
    /// It is on the device: the jobs that began can step.
    Ready,
    /// It is there already: nothing had to be done.
    Already(Residency),
    /// What a hand asked for is done later.
    Deferred {
        /// What.
        order: Order,
        /// Jobs that use it.
        in_flight: u32,
        /// Whether it is on its way somewhere.
        moving: bool,
    },
    /// It cannot make room.
    Refused {
        /// Jobs that use it.
        in_flight: u32,
        /// Whether it is on its way somewhere.
        moving: bool,
    },
    /// Unless something else happens, nothing changes before then: send [`Event::Tick`].
    WakeAt(Moment),
}

/// Moves of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tally {
    /// How many.
    pub count: u64,
    /// Seconds of all of them.
    pub seconds: f64,
    /// Seconds of the last.
    pub last_s: f64,
}

impl Tally {
    fn add(&mut self, seconds: f64) {
        self.count += 1;
        self.seconds += seconds;
        self.last_s = seconds;
    }
}

/// Every move a model made.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Counts {
    /// From its files to the device.
    pub from_files: Tally,
    /// From host memory to the device.
    pub from_host: Tally,
    /// To host memory.
    pub offloads: Tally,
    /// Out.
    pub releases: Tally,
    /// Moves that failed.
    pub failed: Tally,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Moving {
    to: Residency,
    since: Moment,
}

/// A model's life on one device.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Life {
    residency: Residency,
    moving: Option<Moving>,
    /// Jobs that use it now, waiting for it included.
    in_flight: u32,
    /// Open sessions on it that are parked.
    parked: u32,
    /// Since when no job uses it.
    idle_since: Moment,
    /// What the last request said about keeping.
    asked: Option<KeepAlive>,
    /// What a hand asked for and could not be done yet.
    order: Option<(Order, MoveWhy)>,
    /// Whether it is where it is by an order, and no job has used it since.
    placed: bool,
    rate: RequestRate,
    counts: Counts,
}

impl Life {
    /// Where it is. While it moves this is where it comes from.
    pub fn residency(&self) -> Residency {
        self.residency
    }

    /// Where it is on its way to.
    pub fn moving_to(&self) -> Option<Residency> {
        self.moving.map(|moving| moving.to)
    }

    /// Jobs that use it now.
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// Seconds without a job; none while one uses it.
    pub fn idle_s(&self, now: Moment) -> Option<f64> {
        (self.in_flight == 0).then(|| now.seconds_since(self.idle_since))
    }

    /// Since when no job uses it; where one does, since when none did before.
    pub fn idle_since(&self) -> Moment {
        self.idle_since
    }

    /// How often it is asked for.
    pub fn rate(&self) -> &RequestRate {
        &self.rate
    }

    /// Every move it made.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Takes note of what happened, and says what has to be done.
    ///
    /// # Panics
    /// When more jobs end than began, or a move ends that none began: bugs in whoever sends the events.
    pub fn on_event(&mut self, event: Event, policy: &LifePolicy, now: Moment) -> Vec<Effect> {
        let mut effects = Vec::new();
        match event {
            Event::JobBegins { keep_alive } => {
                self.rate.request(now, policy.from_host_s);
                self.asked = keep_alive;
                self.placed = false;
                self.in_flight += 1;
                self.ready_at_once(&mut effects);
            }
            Event::JobResumes => {
                self.parked = fewer(self.parked);
                self.in_flight += 1;
                self.ready_at_once(&mut effects);
            }
            Event::JobParks => {
                self.parked += 1;
                self.leave(now);
            }
            Event::JobExpects => self.parked += 1,
            Event::JobEnds => self.leave(now),
            Event::ParkedJobLeaves => {
                self.parked = fewer(self.parked);
                self.idle_since = now;
            }
            Event::Hand(order) => self.ask(order, MoveWhy::Hand, &mut effects),
            Event::Preload => self.ask(Order::Load, MoveWhy::Preload, &mut effects),
            Event::MakeRoom { to } => self.make_room(to, now, &mut effects),
            Event::Arrived => self.end_move(true, now, &mut effects),
            Event::MoveFailed => self.end_move(false, now, &mut effects),
            Event::Tick => {}
        }
        // A failed load is not tried again by itself: the jobs that wanted it are told, and end.
        if event != Event::MoveFailed {
            self.settle(policy, now, &mut effects);
        }
        effects
    }

    fn ready_at_once(&self, effects: &mut Vec<Effect>) {
        if self.moving.is_none() && self.residency == Residency::Device {
            effects.push(Effect::Ready);
        }
    }

    fn leave(&mut self, now: Moment) {
        self.in_flight = fewer(self.in_flight);
        if self.in_flight == 0 {
            self.idle_since = now;
        }
    }

    fn ask(&mut self, order: Order, why: MoveWhy, effects: &mut Vec<Effect>) {
        let there = self.moving.is_none() && self.residency == order.to();
        if there {
            self.order = None;
            effects.push(Effect::Already(self.residency));
            return;
        }
        self.order = Some((order, why));
        if self.in_flight > 0 || self.moving.is_some() {
            effects.push(Effect::Deferred {
                order,
                in_flight: self.in_flight,
                moving: self.moving.is_some(),
            });
        }
    }

    fn make_room(&mut self, to: Residency, now: Moment, effects: &mut Vec<Effect>) {
        if self.in_flight > 0 || self.moving.is_some() {
            effects.push(Effect::Refused {
                in_flight: self.in_flight,
                moving: self.moving.is_some(),
            });
        } else if self.residency > to {
            self.go(to, MoveWhy::MakeRoom, now, effects);
        } else {
            effects.push(Effect::Already(self.residency));
        }
    }

    fn end_move(&mut self, arrived: bool, now: Moment, effects: &mut Vec<Effect>) {
        let Moving { to, since } = self
            .moving
            .take()
            .expect("a move ends that none began: this is a bug");
        let seconds = now.seconds_since(since);
        if !arrived {
            self.counts.failed.add(seconds);
            if self.in_flight == 0 && self.residency != Residency::Unloaded {
                effects.push(Effect::WakeAt(now + LOOK_AGAIN));
            }
            return;
        }
        match (self.residency, to) {
            (Residency::Host, Residency::Device) => self.counts.from_host.add(seconds),
            (_, Residency::Device) => self.counts.from_files.add(seconds),
            (_, Residency::Host) => self.counts.offloads.add(seconds),
            (_, Residency::Unloaded) => self.counts.releases.add(seconds),
        }
        self.residency = to;
        if to == Residency::Device {
            self.idle_since = now;
            if self.in_flight > 0 {
                effects.push(Effect::Ready);
            }
        }
    }

    fn go(&mut self, to: Residency, why: MoveWhy, now: Moment, effects: &mut Vec<Effect>) {
        let from = self.residency;
        self.moving = Some(Moving { to, since: now });
        effects.push(Effect::Move { from, to, why });
    }

    /// Begins what is due: what jobs need before what a hand asked for, and that before the timer.
    fn settle(&mut self, policy: &LifePolicy, now: Moment, effects: &mut Vec<Effect>) {
        if self.moving.is_some() {
            return;
        }
        if self.in_flight > 0 {
            if self.residency != Residency::Device {
                self.go(Residency::Device, MoveWhy::Job, now, effects);
            }
            return;
        }
        if let Some((order, why)) = self.order.take()
            && self.residency != order.to()
        {
            self.placed = true;
            self.go(order.to(), why, now, effects);
            return;
        }
        if self.parked > 0 || self.residency == Residency::Unloaded {
            return;
        }
        self.rest(policy, now, effects);
    }

    /// The timer: where it may no longer stay, or when to look again.
    fn rest(&mut self, policy: &LifePolicy, now: Moment, effects: &mut Vec<Effect>) {
        let Rest {
            to_host,
            out,
            because,
        } = Rest::of(self.asked, policy, &self.rate, self.placed);
        let idle = now.since(self.idle_since);
        let due = |after: Option<Duration>| after.is_some_and(|after| idle >= after);
        let why = MoveWhy::Rest { idle, because };
        if due(out) {
            self.go(Residency::Unloaded, why, now, effects);
        } else if self.residency == Residency::Device && due(to_host) {
            let to = match policy.host_room {
                true => Residency::Host,
                false => Residency::Unloaded,
            };
            self.go(to, why, now, effects);
        } else {
            let next = match self.residency {
                Residency::Device => to_host.into_iter().chain(out).min(),
                Residency::Host | Residency::Unloaded => out,
            };
            effects.extend(next.map(|after| Effect::WakeAt(self.idle_since + after)));
        }
    }
}

fn fewer(count: u32) -> u32 {
    count
        .checked_sub(1)
        .expect("more jobs end than began: this is a bug")
}
