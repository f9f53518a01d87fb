//! TLS to a gateway: which authorities a command trusts, how a server's certificate is judged, and what the user reads when
//! it is refused. `connection` calls it for `https` and `wss` URLs.

use crate::output::Failure;
use clap::Args;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject as _},
    server::ParsedCertificate,
};
use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

/// The flag that says whom to trust.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct TlsOptions {
    /// PEM certificates of the authorities that vouch for the gateway, in place of the public ones.
    #[arg(long, value_name = "FILE", env = "FANFARE_CA_FILE", hide_env_values = true)]
    ca_file: Option<PathBuf>,
}

/// How to speak TLS with one gateway.
#[derive(Clone)]
pub(crate) struct Tls {
    connector: TlsConnector,
    server_name: ServerName<'static>,
    ca_file: Option<PathBuf>,
}

impl Tls {
    /// Trusts the public authorities that are built in or, with `--ca-file`, the certificates in that file alone.
    pub(crate) fn new(host: &str, options: &TlsOptions) -> Result<Self, Failure> {
        let authorities = options.ca_file.as_deref().map(read_certificates).transpose()?;
        let mut roots = RootCertStore::empty();
        match &authorities {
            Some(certificates) => _ = roots.add_parsable_certificates(certificates.iter().cloned()),
            None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        }
        let cannot = |why: &dyn std::fmt::Display| Failure::config(format_args!("TLS: {why}"));
        // The provider is named here because no default is installed in the process of a client command.
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let webpki = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .map_err(|error| cannot(&error))?;
        let verifier = Verifier { webpki, named: authorities.unwrap_or_default() };
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| cannot(&error))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        // A WebSocket needs HTTP/1.1, and so does the HTTP client of this crate.
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let server_name = ServerName::try_from(host.to_owned()).map_err(|error| cannot(&error))?;
        Ok(Self { connector: TlsConnector::from(Arc::new(config)), server_name, ca_file: options.ca_file.clone() })
    }

    /// Shakes hands with the server at the other end of `stream`.
    pub(crate) async fn connect(&self, stream: TcpStream) -> Result<TlsStream<TcpStream>, Failure> {
        let connected = self.connector.connect(self.server_name.clone(), stream).await;
        connected.map_err(|error| match self.permanent_fault(&error) {
            Some(fault) => Failure { is_permanent: true, ..Failure::refused(fault) },
            None => Failure::refused(format_args!("TLS: {error}")),
        })
    }

    /// What is wrong with the server, for the user, if a retry cannot help.
    fn permanent_fault(&self, error: &io::Error) -> Option<String> {
        match error.get_ref()?.downcast_ref::<Error>()? {
            // A certificate that signs itself is `Other`, another authority of the same name a `BadSignature`.
            Error::InvalidCertificate(
                CertificateError::UnknownIssuer | CertificateError::BadSignature | CertificateError::Other(_),
            ) => Some(match &self.ca_file {
                None => "no public authority vouches for its certificate; if it is from an authority of yours, \
                         or signs itself, name that certificate with --ca-file FILE"
                    .to_owned(),
                Some(file) => {
                    format!("no certificate in {} (--ca-file) vouches for its certificate", file.display())
                }
            }),
            Error::InvalidCertificate(why) => Some(format!("its certificate is refused: {why}")),
            Error::InvalidMessage(_) => {
                Some("it does not speak TLS; a gateway without TLS has an http:// or ws:// address".to_owned())
            }
            _ => None,
        }
    }
}

fn read_certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, Failure> {
    let wrong = |why: &dyn std::fmt::Display| Failure::config(format_args!("--ca-file {}: {why}", file.display()));
    let certificates = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let certificates = certificates.map_err(|error| wrong(&error))?;
    if certificates.is_empty() { Err(wrong(&"no PEM certificate in it")) } else { Ok(certificates) }
}

/// The usual judgement, and one exception: a certificate that signs itself and stands in `--ca-file` is accepted as the
/// server's own. `openssl req -x509` makes them as authorities, and webpki refuses an authority as a server.
#[derive(Debug)]
struct Verifier {
    webpki: Arc<WebPkiServerVerifier>,
    /// The certificates of `--ca-file`.
    named: Vec<CertificateDer<'static>>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let judged = self.webpki.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match judged {
            // It has checked the dates before, but not the name.
            Err(Error::InvalidCertificate(CertificateError::Other(why)))
                if why.0.to_string() == "CaUsedAsEndEntity" && self.named.contains(end_entity) =>
            {
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
                Ok(ServerCertVerified::assertion())
            }
            _ => judged,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.webpki.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ca_file_without_certificates_is_refused_by_its_name() {
        let refused = |file: &str| {
            let options = TlsOptions { ca_file: Some(file.into()) };
            Tls::new("localhost", &options).err().expect("no certificates")
        };
        for file in ["/nowhere/ca.pem", "Cargo.toml"] {
            let failure = refused(file);
            assert!(failure.exit_code == 78 && failure.text.starts_with(&format!("--ca-file {file}: ")), "{failure:?}");
        }
        assert!(Tls::new("localhost", &TlsOptions::default()).is_ok());
    }
}
