//! One connection: a socket of the machine or the net, with or without TLS, and the first words on it.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::address::{Address, Place};
use super::wire::{self, Command, Reply};
use crate::{Result, StoreError};

/// How long a connection may take to come about.
const CONNECT_MAX: Duration = Duration::from_secs(3);

/// Files for TLS, in PEM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// Whom to trust beside the authorities that browsers trust.
    pub authority: Option<PathBuf>,
    /// Who we are, where the server wants to know: a certificate and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

impl TlsFiles {
    /// What every connection is made with.
    ///
    /// # Errors
    /// `Io`, `Invalid`, with the file.
    pub(super) fn read(&self) -> Result<Arc<ClientConfig>> {
        let wrong = |path: &PathBuf| {
            let path = path.display().to_string();
            move |cause: &dyn std::fmt::Display| StoreError::Invalid {
                field: "a file for TLS",
                reason: format!("'{path}': {cause}"),
            }
        };
        let certificates = |path: &PathBuf| -> Result<Vec<CertificateDer<'static>>> {
            let all = CertificateDer::pem_file_iter(path).map_err(|cause| wrong(path)(&cause))?;
            let all: std::result::Result<Vec<_>, _> = all.collect();
            let all = all.map_err(|cause| wrong(path)(&cause))?;
            match all.is_empty() {
                true => Err(wrong(path)(&"there is no certificate in it")),
                false => Ok(all),
            }
        };
        let mut roots = RootCertStore {
            roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
        };
        if let Some(path) = &self.authority {
            for certificate in certificates(path)? {
                roots
                    .add(certificate)
                    .map_err(|cause| wrong(path)(&cause))?;
            }
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("ring has the default versions")
            .with_root_certificates(roots);
        let Some((certificate, key)) = &self.identity else {
            return Ok(Arc::new(builder.with_no_client_auth()));
        };
        let private = PrivateKeyDer::from_pem_file(key).map_err(|cause| wrong(key)(&cause))?;
        let config = builder.with_client_auth_cert(certificates(certificate)?, private);
        Ok(Arc::new(config.map_err(|cause| wrong(key)(&cause))?))
    }
}

enum Stream {
    Net(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
    #[cfg(unix)]
    Socket(std::os::unix::net::UnixStream),
}

impl Stream {
    fn open(place: &Place, tls: Option<&Arc<ClientConfig>>) -> io::Result<Stream> {
        match place {
            Place::Host { host, port, .. } => {
                let net = reach(host, *port)?;
                net.set_nodelay(true)?;
                let Some(config) = tls else {
                    return Ok(Stream::Net(net));
                };
                let name = ServerName::try_from(host.clone())
                    .map_err(|cause| io::Error::new(io::ErrorKind::InvalidInput, cause))?;
                let client = ClientConnection::new(Arc::clone(config), name);
                let client = client.map_err(io::Error::other)?;
                Ok(Stream::Tls(Box::new(StreamOwned::new(client, net))))
            }
            #[cfg(unix)]
            Place::Socket(path) => {
                std::os::unix::net::UnixStream::connect(path).map(Stream::Socket)
            }
            #[cfg(not(unix))]
            Place::Socket(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    fn patience(&self, time: Duration) -> io::Result<()> {
        match self {
            Stream::Net(net) => net.set_timeouts(time),
            Stream::Tls(tls) => tls.sock.set_timeouts(time),
            #[cfg(unix)]
            Stream::Socket(socket) => socket
                .set_read_timeout(Some(time))
                .and_then(|()| socket.set_write_timeout(Some(time))),
        }
    }
}

trait Timeouts {
    fn set_timeouts(&self, time: Duration) -> io::Result<()>;
}

impl Timeouts for TcpStream {
    fn set_timeouts(&self, time: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(time))?;
        self.set_write_timeout(Some(time))
    }
}

fn reach(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut last = None;
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, CONNECT_MAX) {
            Ok(net) => return Ok(net),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the name has no address")))
}

impl Read for Stream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Net(net) => net.read(into),
            Stream::Tls(tls) => tls.read(into),
            #[cfg(unix)]
            Stream::Socket(socket) => socket.read(into),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Net(net) => net.write(from),
            Stream::Tls(tls) => tls.write(from),
            #[cfg(unix)]
            Stream::Socket(socket) => socket.write(from),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Stream::Net(net) => net.flush(),
            Stream::Tls(tls) => tls.flush(),
            #[cfg(unix)]
            Stream::Socket(socket) => socket.flush(),
        }
    }
}

/// Ends a connection from another thread, so that whoever reads from it stops waiting.
pub(super) enum Hangup {
    Net(TcpStream),
    #[cfg(unix)]
    Socket(std::os::unix::net::UnixStream),
}

impl Hangup {
    /// Ends it.
    pub(super) fn hang_up(&self) {
        // One that has ended already is as good.
        let _ = match self {
            Hangup::Net(net) => net.shutdown(Shutdown::Both),
            #[cfg(unix)]
            Hangup::Socket(socket) => socket.shutdown(Shutdown::Both),
        };
    }
}

/// A connection on which commands can be given.
pub(super) struct Connection(BufReader<Stream>);

impl Connection {
    /// Reaches the server. Nothing was said yet.
    ///
    /// # Errors
    /// Of the system.
    pub(super) fn open(
        address: &Address,
        tls: Option<&Arc<ClientConfig>>,
    ) -> io::Result<Connection> {
        let stream = Stream::open(&address.place, tls)?;
        stream.patience(CONNECT_MAX)?;
        Ok(Connection(BufReader::with_capacity(64 << 10, stream)))
    }

    /// Says who we are.
    ///
    /// # Errors
    /// Of the system, or what the server has against it.
    pub(super) fn greet(
        &mut self,
        address: &Address,
    ) -> io::Result<std::result::Result<(), String>> {
        let mut words = Vec::new();
        if let Some(password) = &address.password {
            let command = Command::new("AUTH");
            let command = match &address.user {
                Some(user) => command.arg(user),
                None => command,
            };
            words.push(command.arg(password));
        }
        if address.database > 0 {
            words.push(Command::new("SELECT").number(address.database));
        }
        words.push(Command::new("PING"));
        for reply in self.ask(&words)? {
            if let Reply::Error(error) = reply {
                return Ok(Err(error));
            }
        }
        Ok(Ok(()))
    }

    /// How long an answer may take from now on.
    ///
    /// # Errors
    /// Of the system.
    pub(super) fn patience(&self, time: Duration) -> io::Result<()> {
        self.0.get_ref().patience(time)
    }

    /// Gives commands and waits for all answers.
    ///
    /// # Errors
    /// Of the system; which commands were carried out is then not known.
    pub(super) fn ask(&mut self, commands: &[Command]) -> io::Result<Vec<Reply>> {
        self.say(commands)?;
        commands.iter().map(|_| self.hear()).collect()
    }

    /// Gives commands.
    ///
    /// # Errors
    /// Of the system.
    pub(super) fn say<'a>(
        &mut self,
        commands: impl IntoIterator<Item = &'a Command>,
    ) -> io::Result<()> {
        let mut out = Vec::new();
        commands
            .into_iter()
            .for_each(|command| command.write_to(&mut out));
        self.0.get_mut().write_all(&out)?;
        self.0.get_mut().flush()
    }

    /// The next answer.
    ///
    /// # Errors
    /// Of the system.
    pub(super) fn hear(&mut self) -> io::Result<Reply> {
        wire::read(&mut self.0)
    }

    /// Waits until something comes, as long as patience lasts.
    ///
    /// # Errors
    /// Of the system; `WouldBlock` or `TimedOut` where nothing came.
    pub(super) fn await_some(&mut self) -> io::Result<()> {
        match self.0.fill_buf()?.is_empty() {
            true => Err(io::ErrorKind::UnexpectedEof.into()),
            false => Ok(()),
        }
    }

    /// A way to end it from another thread.
    ///
    /// # Errors
    /// Of the system.
    pub(super) fn hangup(&self) -> io::Result<Hangup> {
        match self.0.get_ref() {
            Stream::Net(net) => net.try_clone().map(Hangup::Net),
            Stream::Tls(tls) => tls.sock.try_clone().map(Hangup::Net),
            #[cfg(unix)]
            Stream::Socket(socket) => socket.try_clone().map(Hangup::Socket),
        }
    }
}
