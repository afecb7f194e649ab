//! WireGuard keys: made anew for each job, never written anywhere.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use boringtun::x25519;
use std::io::Read;

/// A peer's public key.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct PublicKey([u8; 32]);

impl std::fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text())
    }
}

impl PublicKey {
    pub(crate) fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// From base64, as WireGuard writes it.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        Some(Self(STANDARD.decode(text).ok()?.try_into().ok()?))
    }

    pub(crate) fn text(&self) -> String {
        STANDARD.encode(self.0)
    }

    pub(crate) fn x25519(&self) -> x25519::PublicKey {
        self.0.into()
    }
}

/// Our key pair.
#[derive(Clone)]
pub(crate) struct Keys {
    private: x25519::StaticSecret,
    public: x25519::PublicKey,
}

impl Keys {
    /// A new pair.
    pub(crate) fn generate() -> std::io::Result<Self> {
        let bytes = fresh().ok_or_else(|| std::io::Error::other("/dev/urandom gives nothing"))?;
        let private = x25519::StaticSecret::from(bytes);
        let public = x25519::PublicKey::from(&private);
        Ok(Self { private, public })
    }

    pub(crate) fn private(&self) -> x25519::StaticSecret {
        self.private.clone()
    }

    pub(crate) fn public(&self) -> &x25519::PublicKey {
        &self.public
    }

    pub(crate) fn public_text(&self) -> String {
        STANDARD.encode(self.public.as_bytes())
    }
}

/// Secret bytes. None: the system gives none.
pub(super) fn fresh<const LENGTH: usize>() -> Option<[u8; LENGTH]> {
    let mut bytes = [0; LENGTH];
    std::fs::File::open("/dev/urandom").ok()?.read_exact(&mut bytes).ok()?;
    Some(bytes)
}
