//! `extra-single-image` and `extra-batch-images`: pictures made larger by a network.

use axum::extract::State;
use axum::response::Response;
use lowtide_core::job::JobState;
use lowtide_jobs::{Accepted, Job};
use serde_json::{Value, json};

use super::lists::{KIND_UPSCALE, upscaling_models};
use super::translate::{picture_url, upscaler_named};
use super::{Foreign, exchange};
use crate::answer;
use crate::app::{App, Inner};
use crate::base64;
use crate::fields::{Fields, wrong};
use crate::incoming::{Asked, JsonWithPictures};
use crate::pictures;
use crate::refusal::Refusal;
use crate::routes::Routes;
use crate::routes::submit::draft;
use crate::routes::waiting::Patron;

/// The factor where nobody says one.
const SCALE: f64 = 2.0;

/// The largest factor.
const SCALE_MAX: f64 = 16.0;

/// Pictures of one request: each is a job.
const PICTURES_MAX: usize = 64;

/// Accepted whatever they say: without a restoration of faces they mean nothing.
const IGNORED: [&str; 2] = ["codeformer_weight", "upscale_first"];

/// What has no counterpart here; 0 changes nothing.
const REFUSED: [(&str, &str); 3] = [
    ("gfpgan_visibility", "there is no face restoration here"),
    ("codeformer_visibility", "there is no face restoration here"),
    (
        "extras_upscaler_2_visibility",
        "pictures of two networks are not mixed here",
    ),
];

pub(super) fn routes(routes: Routes) -> Routes {
    let enlarging = |summary, body| exchange(summary, body).refuses(&[404, 409, 429]);
    routes
        .post(
            "/sdapi/v1/extra-single-image",
            single,
            enlarging("Makes a picture larger, and waits for it", "SdExtra"),
        )
        .post(
            "/sdapi/v1/extra-batch-images",
            batch,
            enlarging("Makes pictures larger, and waits for them", "SdExtras"),
        )
}

async fn single(
    State(app): State<App>,
    asked: Asked,
    body: Result<JsonWithPictures, Refusal>,
) -> Result<Response, Foreign> {
    asked.done()?;
    let (images, shown) = enlarged(app, body?, |fields| {
        let image = fields.take("image").unwrap_or(Value::Null);
        Ok(vec![picture_url("image", &image)?])
    })
    .await?;
    let image = images.into_iter().next().filter(|_| shown);
    Ok(answer::ok(
        &json!({ "html_info": "", "image": image.unwrap_or_default() }),
    ))
}

async fn batch(
    State(app): State<App>,
    asked: Asked,
    body: Result<JsonWithPictures, Refusal>,
) -> Result<Response, Foreign> {
    asked.done()?;
    let (images, shown) = enlarged(app, body?, |fields| {
        let list = match fields.take("imageList") {
            Some(Value::Array(list)) if (1..=PICTURES_MAX).contains(&list.len()) => list,
            Some(Value::Array(_)) => {
                let problem = format!("1 to {PICTURES_MAX} pictures are needed");
                return Err(Refusal::invalid("imageList", problem));
            }
            other => return Err(wrong("imageList", "a list", &other.unwrap_or(Value::Null))),
        };
        let read = |(place, one): (usize, &Value)| {
            let url = picture_url("data", &one["data"]);
            url.map_err(|refusal| refusal.within(&format!("imageList[{place}]")))
        };
        list.iter().enumerate().map(read).collect()
    })
    .await?;
    let images = if shown { images } else { Vec::new() };
    Ok(answer::ok(&json!({ "html_info": "", "images": images })))
}

/// What is to be done with each picture.
struct Wanted {
    /// The network; `None` leaves pictures as they are.
    network: Option<String>,
    size: Size,
    shown: bool,
}

#[derive(Clone, Copy)]
enum Size {
    Times(f64),
    Sides {
        width: u64,
        height: u64,
        /// Whether what is too much is cut off.
        cropped: bool,
    },
}

/// Has all pictures enlarged; whether they are wanted in the answer.
async fn enlarged(
    app: App,
    JsonWithPictures(body, turn): JsonWithPictures,
    pictures: impl FnOnce(&mut Fields) -> Result<Vec<String>, Refusal> + Send + 'static,
) -> Result<(Vec<String>, bool), Refusal> {
    let desk = App::clone(&app);
    let begin = move |app: &Inner| {
        let mut fields = Fields::of(body)?;
        let urls = pictures(&mut fields)?;
        let wanted = Wanted::read(app, &mut fields)?;
        fields.done()?;
        let Some(network) = &wanted.network else {
            let as_it_is = |url: &String| {
                let content = pictures::content(app, "image", url)?;
                Ok(base64::encode(&content))
            };
            let same = urls.iter().map(as_it_is).collect::<Result<_, Refusal>>()?;
            return Ok((Ok(same), wanted.shown));
        };
        let now = app.now();
        let mut submissions = Vec::with_capacity(urls.len());
        for url in urls {
            let scale = wanted.size.scale(app, &url)?;
            let request = json!({ "image": url, "scale": scale });
            let body = json!({ "kind": KIND_UPSCALE, "model": network, "request": request });
            submissions.push(draft(app, Fields::of(body)?, now)?.submission);
        }
        drop(turn);
        let accepted = app.store.submit_all(submissions, now)?;
        // All are given up together when the client goes away, also those whose turn has not come.
        let patron = |one: &Accepted| {
            app.caller().made(one.job);
            Patron::new(App::clone(&desk), one.job, one.existed)
        };
        let patrons = accepted.iter().map(patron).collect();
        Ok((Err(patrons), wanted.shown))
    };
    let (begun, shown) = app.blocking(begin).await?;
    let patrons: Vec<Patron> = match begun {
        Ok(same) => return Ok((same, shown)),
        Err(patrons) => patrons,
    };
    let desk = App::clone(&app);
    let caller = desk.caller();
    let wait = |patron: &Patron| desk.sdapi.wait_for(&caller, patron.job());
    let waited: Vec<_> = patrons.iter().map(wait).collect();
    let mut images = Vec::with_capacity(patrons.len());
    for patron in patrons {
        let over = patron.until_over().await?;
        images.extend(app.blocking(move |app| file(app, over)).await?);
    }
    drop(waited);
    Ok((images, shown))
}

/// The result as base64; `None` where it was interrupted.
fn file(app: &Inner, job: Job) -> Result<Option<String>, Refusal> {
    match job.state {
        JobState::Done => {
            let outcome = job.outcome.unwrap_or_default();
            let artifact = outcome.artifacts.first();
            let artifact = artifact.ok_or_else(|| Refusal::Internal {
                problem: format!("job {} is done and has no file; this is a bug", job.id),
            })?;
            Ok(Some(base64::encode(&app.artifacts.read(artifact)?)))
        }
        JobState::Cancelled => Ok(None),
        JobState::Failed => {
            let why = job.error.unwrap_or_default();
            Err(Refusal::Internal {
                problem: format!("job {} failed: {why}", job.id),
            })
        }
        JobState::Queued | JobState::Running | JobState::Parked | JobState::Paused => {
            Err(Refusal::Unavailable {
                problem: format!(
                    "the server ends; job {} goes on after its next start",
                    job.id
                ),
            })
        }
    }
}

impl Wanted {
    fn read(app: &Inner, fields: &mut Fields) -> Result<Wanted, Refusal> {
        for name in IGNORED {
            fields.take(name);
        }
        for (name, why) in REFUSED {
            if fields
                .number(name, 0.0..=1.0)?
                .is_some_and(|share| share > 0.0)
            {
                return Err(Refusal::invalid(name, why));
            }
        }
        // Without a share it means nothing.
        fields.take("upscaler_2");
        let shown = fields.flag("show_extras_results")?.unwrap_or(true);
        let to_sides = fields.whole("resize_mode", 0..=1)? == Some(1);
        let scale = fields.number("upscaling_resize", 1.0..=SCALE_MAX)?;
        let (width, height) = (
            fields.whole("upscaling_resize_w", 0..=65_536)?.unwrap_or(0),
            fields.whole("upscaling_resize_h", 0..=65_536)?.unwrap_or(0),
        );
        let cropped = fields.flag("upscaling_crop")?.unwrap_or(true);
        let size = match (to_sides, width, height) {
            (false, ..) => Size::Times(scale.unwrap_or(SCALE)),
            (true, 0, 0) => {
                return Err(Refusal::invalid(
                    "upscaling_resize_w",
                    "a width or a height is needed with resize_mode 1",
                ));
            }
            (true, width, height) => Size::Sides {
                width,
                height,
                cropped,
            },
        };
        let name = fields.text("upscaler_1")?;
        let name = name.filter(|name| !name.is_empty() && name != "None");
        let network = name.map(|name| {
            upscaler_named(app, &name).ok_or_else(|| {
                let known = upscaling_models(app);
                Refusal::invalid(
                    "upscaler_1",
                    match known.is_empty() {
                        true => "there is no network here that enlarges pictures".to_owned(),
                        false => format!("there are None, {}", known.join(", ")),
                    },
                )
            })
        });
        Ok(Wanted {
            network: network.transpose()?,
            size,
            shown,
        })
    }
}

impl Size {
    /// The factor for a picture.
    fn scale(self, app: &Inner, url: &str) -> Result<f64, Refusal> {
        let (width, height, cropped) = match self {
            Size::Times(scale) => return Ok(scale),
            Size::Sides {
                width,
                height,
                cropped,
            } => (width, height, cropped),
        };
        let picture = pictures::content(app, "image", url)?;
        let [across, down] = app.door.size_of(&picture)?.map(u64::from);
        if cropped && width > 0 && height > 0 && width * down != height * across {
            let problem = format!(
                "nothing is cut off here, and {width}x{height} has other proportions than {across}x{down}: give one side"
            );
            return Err(Refusal::invalid("upscaling_crop", problem));
        }
        let scale = (width as f64 / across as f64).max(height as f64 / down as f64);
        match (1.0..=SCALE_MAX).contains(&scale) {
            // Factors have four digits there, and pixels are counted down: rather a little more than one pixel less.
            true => Ok((scale * 1e4 - 1e-6).ceil() / 1e4),
            false => Err(Refusal::invalid(
                "upscaling_resize_w",
                format!(
                    "{across}x{down} can become 1 to {SCALE_MAX} times as large, not {scale:.2} times"
                ),
            )),
        }
    }
}
