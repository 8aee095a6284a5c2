//! Where a server is: `redis://user:password@host:port/database`, `rediss://` for TLS, `redis+unix:///path` for a
//! socket. A password is never written anywhere but to the server.

use std::fmt;
use std::path::PathBuf;

use crate::{Result, StoreError};

/// Where Redis listens unless told otherwise.
const PORT: u16 = 6379;

/// How it is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// By name and port, with or without TLS.
    Host { host: String, port: u16, tls: bool },
    /// A socket of this machine.
    Socket(PathBuf),
}

/// A server, and who we are there.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) place: Place,
    pub(super) user: Option<String>,
    pub(super) password: Option<String>,
    pub(super) database: u32,
}

impl Address {
    /// Takes a URL apart.
    ///
    /// # Errors
    /// `Invalid`, which does not repeat the URL: it may have a password in it.
    pub(super) fn parse(url: &str) -> Result<Address> {
        let (scheme, rest) = url
            .split_once("://")
            .ok_or_else(|| wrong("it has no ://"))?;
        match scheme {
            "redis" | "valkey" => Address::host(rest, false),
            "rediss" | "valkeys" => Address::host(rest, true),
            "redis+unix" | "valkey+unix" | "unix" => Address::socket(rest),
            _ => Err(wrong(
                "it begins with none of redis://, rediss://, valkey://, valkeys:// and redis+unix://",
            )),
        }
    }

    fn host(rest: &str, tls: bool) -> Result<Address> {
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (user, password, place) = identity(authority)?;
        let (host, port) = match place.strip_prefix('[') {
            Some(rest) => {
                let (host, port) = rest
                    .split_once(']')
                    .ok_or_else(|| wrong("a ] is missing"))?;
                (host, port.strip_prefix(':'))
            }
            None => match place.rsplit_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (place, None),
            },
        };
        let port = match port {
            Some(port) => port.parse().map_err(|_| wrong("its port is no number"))?,
            None => PORT,
        };
        if host.is_empty() || host.contains(['?', '#', ' ']) {
            return Err(wrong("it names no host"));
        }
        Ok(Address {
            place: Place::Host {
                host: host.to_owned(),
                port,
                tls,
            },
            user,
            password,
            database: database(path)?,
        })
    }

    fn socket(rest: &str) -> Result<Address> {
        let (authority, path) = rest
            .find('/')
            .map(|at| rest.split_at(at))
            .ok_or_else(|| wrong("it names no socket"))?;
        let (user, password, host) = identity(authority)?;
        if !host.is_empty() {
            return Err(wrong("a socket's path begins with /"));
        }
        let (path, number) = path.split_once("?db=").unwrap_or((path, ""));
        Ok(Address {
            place: Place::Socket(PathBuf::from(path)),
            user,
            password,
            database: database(number)?,
        })
    }
}

fn database(text: &str) -> Result<u32> {
    match text {
        "" => Ok(0),
        _ => text
            .parse()
            .map_err(|_| wrong("after the host comes nothing but / and a database's number")),
    }
}

/// User and password, and what follows them.
fn identity(authority: &str) -> Result<(Option<String>, Option<String>, &str)> {
    let Some((identity, place)) = authority.rsplit_once('@') else {
        return Ok((None, None, authority));
    };
    let (user, password) = match identity.split_once(':') {
        Some((user, password)) => (user, Some(password)),
        None => (identity, None),
    };
    let plain = |text: &str| -> Result<Option<String>> {
        Ok(Some(decoded(text)?).filter(|text| !text.is_empty()))
    };
    let (user, password) = (plain(user)?, password.map_or(Ok(None), plain)?);
    if user.is_some() && password.is_none() {
        return Err(wrong("it has a user and no password"));
    }
    Ok((user, password, place))
}

/// `%40` and its like as the signs they stand for.
fn decoded(text: &str) -> Result<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        if first != b'%' {
            bytes.push(first);
            rest = after;
            continue;
        }
        let digits = after.get(..2).and_then(|two| str::from_utf8(two).ok());
        let byte = digits.and_then(|two| u8::from_str_radix(two, 16).ok());
        bytes.push(byte.ok_or_else(|| wrong("after % come two hexadecimal digits"))?);
        rest = &after[2..];
    }
    String::from_utf8(bytes).map_err(|_| wrong("its user or password is no text"))
}

fn wrong(reason: &str) -> StoreError {
    StoreError::Invalid {
        field: "the store's URL",
        reason: format!("{reason}; write redis://user:password@host:6379/0"),
    }
}

impl fmt::Display for Address {
    /// For people: without the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let user = self.user.as_deref().unwrap_or_default();
        let who = match (&self.user, &self.password) {
            (None, None) => String::new(),
            _ => format!("{user}:***@"),
        };
        match &self.place {
            Place::Host { host, port, tls } => {
                let scheme = if *tls { "rediss" } else { "redis" };
                let host = match host.contains(':') {
                    true => format!("[{host}]"),
                    false => host.clone(),
                };
                write!(f, "{scheme}://{who}{host}:{port}/{}", self.database)
            }
            Place::Socket(path) => write!(f, "redis+unix://{who}{}", path.display()),
        }
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A store's URL as it may be shown: whatever stands where a password can stand is left out. Also for texts that are no
/// URL of a server.
pub fn redacted(url: &str) -> String {
    if let Ok(address) = Address::parse(url) {
        return address.to_string();
    }
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.to_owned();
    };
    match rest.rsplit_once('@') {
        Some((_, place)) => format!("{scheme}://***@{place}"),
        None => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_says_where_and_who() {
        let parse = |url| Address::parse(url).unwrap();
        let full = parse("rediss://me:p%40s:s@cache.example:7000/3");
        assert_eq!(full.user.as_deref(), Some("me"));
        assert_eq!(full.password.as_deref(), Some("p@s:s"));
        assert_eq!(full.database, 3);
        let tls = Place::Host {
            host: "cache.example".to_owned(),
            port: 7000,
            tls: true,
        };
        assert!(full.place == tls);
        for (url, shown) in [
            ("redis://host", "redis://host:6379/0"),
            ("valkey://[::1]:7/2", "redis://[::1]:7/2"),
            ("redis://:secret@host/", "redis://:***@host:6379/0"),
            ("redis://a:secret@host", "redis://a:***@host:6379/0"),
            ("redis+unix:///run/r.sock?db=4", "redis+unix:///run/r.sock"),
            ("unix://a:secret@/r", "redis+unix://a:***@/r"),
        ] {
            assert_eq!(format!("{:?}", parse(url)), shown);
            assert_eq!(redacted(url), shown);
        }
        assert_eq!(parse("redis+unix:///r?db=4").database, 4);
    }

    #[test]
    fn what_is_no_url_is_refused_without_its_password() {
        for url in [
            "secret",
            "http://a:secret@host",
            "redis://a:secret@",
            "redis://a:secret@host:x",
            "redis://a:secret@host/x",
            "redis://a:secret%zz@host",
            "redis://secret@host",
            "redis://a:secret@[::1",
            "redis+unix://host/secret",
            "redis://",
        ] {
            let error = Address::parse(url).unwrap_err().to_string();
            assert!(!error.contains("secret"), "{error}");
            assert!(error.contains("redis://"), "{error}");
        }
        assert_eq!(redacted("http://a:secret@host"), "http://***@host");
        assert_eq!(redacted("/a/file"), "/a/file");
    }
}
