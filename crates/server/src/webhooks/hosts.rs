//! Who may be called. A name says little: what counts is the address it stands for at the moment of the call, and that
//! is the address that is connected to.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use axum::http::Uri;
use ureq::config::Config;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

/// Which hosts may be called.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reach {
    /// Those at public addresses, and those that are listed.
    #[default]
    Public,
    /// Those that are listed.
    Listed,
    /// None: webhooks are refused.
    Nobody,
}

/// Who may be called.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WebhookHosts {
    /// Which hosts in general.
    pub reach: Reach,
    /// Hosts that may be called wherever they are: a name or an address, with a port or for all ports.
    pub listed: Vec<String>,
}

impl WebhookHosts {
    /// Whether an address may be called, as far as can be told without asking for its name.
    ///
    /// # Errors
    /// What is wrong with it, as the end of a sentence.
    pub(super) fn check(&self, url: &str) -> Result<(), String> {
        let uri: Uri = url
            .parse()
            .map_err(|_| "an address such as https://example.org/hook is needed".to_owned())?;
        let authority = match (uri.scheme_str(), uri.authority()) {
            (Some("http" | "https"), Some(authority)) if !authority.host().is_empty() => authority,
            _ => return Err("an address with http:// or https:// is needed".to_owned()),
        };
        if authority.as_str().contains('@') {
            return Err(
                "names and passwords do not belong into it: a token may be part of the path"
                    .to_owned(),
            );
        }
        match self.reach {
            Reach::Nobody => Err("this server calls nobody (webhooks.allow)".to_owned()),
            _ if self.lists(&uri) => Ok(()),
            Reach::Listed => Err(format!(
                "this server calls only hosts that are listed (webhooks.hosts), and {} is not",
                authority.host()
            )),
            Reach::Public => match literal(authority.host()) {
                Some(ip) if !is_public(ip) => Err(NotAllowed(ip).to_string()),
                None if is_this_machine(authority.host()) => {
                    Err(NotAllowed(Ipv4Addr::LOCALHOST.into()).to_string())
                }
                _ => Ok(()),
            },
        }
    }

    /// Whether it is listed.
    fn lists(&self, uri: &Uri) -> bool {
        let Some(authority) = uri.authority() else {
            return false;
        };
        let port = authority.port_u16().unwrap_or(match uri.scheme_str() {
            Some("https") => 443,
            _ => 80,
        });
        let host = authority.host().trim_end_matches('.');
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let with_port = format!("{host}:{port}");
        self.listed.iter().any(|listed| {
            [host, bare, &with_port]
                .iter()
                .any(|name| name.eq_ignore_ascii_case(listed))
        })
    }

    fn allows(&self, uri: &Uri, ip: IpAddr) -> bool {
        match self.reach {
            Reach::Nobody => false,
            Reach::Listed => self.lists(uri),
            Reach::Public => is_public(ip) || self.lists(uri),
        }
    }
}

fn literal(host: &str) -> Option<IpAddr> {
    host.trim_start_matches('[')
        .trim_end_matches(']')
        .parse()
        .ok()
}

/// Names that stand for this machine by the rules of names themselves.
fn is_this_machine(host: &str) -> bool {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    host == "localhost" || host.ends_with(".localhost")
}

/// Whether an address is one of the public network: neither this machine's, nor of a network that others do not see, nor
/// one that leads back to those. IANA's registries of special addresses say which they are.
fn is_public(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => is_public_v4(ip),
        IpAddr::V6(ip) => is_public_v6(ip),
    }
}

fn is_public_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    let special = ip.is_private()
        || ip.is_loopback()
        || ip.is_link_local()
        || ip.is_multicast()
        || ip.is_documentation()
        // This network; reserved, and all at once.
        || a == 0
        || a >= 240
        // Between providers and their customers.
        || (a == 100 && (b & 0xc0) == 64)
        // Of protocols, and the anycast address of 6to4.
        || (a, b, c) == (192, 0, 0)
        || (a, b, c) == (192, 88, 99)
        // For measurements.
        || (a == 198 && (b & 0xfe) == 18);
    !special
}

fn is_public_v6(ip: Ipv6Addr) -> bool {
    let [a, b, c, d, e, f, g, h] = ip.segments();
    // An IPv4 address behind a translator is what it stands for.
    if [a, b, c, d, e, f] == [0x64, 0xff9b, 0, 0, 0, 0] {
        let [one, two] = g.to_be_bytes();
        let [three, four] = h.to_be_bytes();
        return is_public_v4(Ipv4Addr::new(one, two, three, four));
    }
    // Only so much was given to the public network; what is left out of it are protocols, tunnels and examples.
    let global = (a & 0xe000) == 0x2000;
    let protocols = a == 0x2001 && b < 0x0200;
    let examples = (a == 0x2001 && b == 0x0db8) || (a == 0x3fff && b < 0x1000);
    global && !protocols && !examples && a != 0x2002
}

/// An address that may not be called.
#[derive(Clone, Copy, Debug)]
pub(super) struct NotAllowed(pub(super) IpAddr);

impl fmt::Display for NotAllowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let NotAllowed(ip) = self;
        write!(
            f,
            "{ip} is not a public address: whoever runs this server can list the host (webhooks.hosts)"
        )
    }
}

impl std::error::Error for NotAllowed {}

/// Looks names up, and gives only addresses that may be called.
#[derive(Debug)]
pub(super) struct Checked {
    pub(super) hosts: WebhookHosts,
    pub(super) names: DefaultResolver,
}

impl Resolver for Checked {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let found = self.names.resolve(uri, config, timeout)?;
        let mut allowed = self.empty();
        for address in found.iter() {
            if self.hosts.allows(uri, address.ip()) {
                allowed.push(*address);
            }
        }
        match (allowed.is_empty(), found.first()) {
            (false, _) => Ok(allowed),
            (true, Some(address)) => Err(ureq::Error::Io(io::Error::new(
                io::ErrorKind::PermissionDenied,
                NotAllowed(address.ip()),
            ))),
            (true, None) => Err(ureq::Error::HostNotFound),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_public_addresses_are_public() {
        for public in [
            "93.184.215.14",
            "1.1.1.1",
            "100.63.255.255",
            "100.128.0.0",
            "172.32.0.1",
            "198.20.0.1",
            "2606:4700::1111",
            "2a00::1",
            "::ffff:1.1.1.1",
            "64:ff9b::101:101",
        ] {
            assert!(is_public(public.parse().unwrap()), "{public}");
        }
        for other in [
            "127.0.0.1",
            "127.255.0.1",
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "100.127.255.255",
            "192.0.0.8",
            "192.88.99.1",
            "192.0.2.1",
            "198.19.255.255",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::127.0.0.1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b:1::1",
            "fe80::1",
            "fc00::1",
            "fd12:3456::1",
            "fec0::1",
            "ff02::1",
            "2001::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "3fff::1",
        ] {
            assert!(!is_public(other.parse().unwrap()), "{other}");
        }
    }

    #[test]
    fn what_is_listed_may_be_called_and_the_rest_as_the_settings_say() {
        let hosts = |reach, listed: &[&str]| WebhookHosts {
            reach,
            listed: listed.iter().map(|&host| host.to_owned()).collect(),
        };
        let public = hosts(Reach::Public, &["127.0.0.1:8080", "Hooks.lan", "::1"]);
        for (url, may) in [
            ("https://example.org/hook?token=a", true),
            ("http://127.0.0.1:8080/hook", true),
            ("http://127.0.0.1/hook", false),
            ("http://127.0.0.1:8081/hook", false),
            ("http://hooks.lan:9/hook", true),
            ("http://hooks.lan.:9/hook", true),
            ("http://[::1]:9/", true),
            ("http://[::2]:9/", false),
            ("http://localhost/", false),
            ("http://a.localhost./", false),
            ("http://10.0.0.1/", false),
            ("http://[::ffff:10.0.0.1]/", false),
            ("https://me:secret@example.org/", false),
            ("ftp://example.org/", false),
            ("/hook", false),
            ("example.org", false),
            ("", false),
        ] {
            assert_eq!(
                public.check(url).is_ok(),
                may,
                "{url}: {:?}",
                public.check(url)
            );
        }
        let listed = hosts(Reach::Listed, &["example.org"]);
        assert!(listed.check("https://example.org/").is_ok());
        assert!(listed.check("https://other.example/").is_err());
        let nobody = hosts(Reach::Nobody, &["example.org"]);
        assert!(nobody.check("https://example.org/").is_err());
        let uri: Uri = "http://hooks.lan/".parse().unwrap();
        let private = "10.0.0.1".parse().unwrap();
        assert!(public.allows(&uri, private) && !nobody.allows(&uri, private));
        let other: Uri = "http://innocent.example/".parse().unwrap();
        assert!(
            !public.allows(&other, private),
            "what its name stands for counts"
        );
        assert!(!listed.allows(&other, "1.1.1.1".parse().unwrap()));
    }
}
