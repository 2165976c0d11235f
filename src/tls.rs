//! The reasons of errors of TLS, with their remedies. Pure; the connections to Postgres, to RabbitMQ
//! and to the issuer of tokens use it.

use std::error::Error;
use std::io;

use rustls::{AlertDescription, CertificateError, Error as TlsError};

const NOT_FOR_SERVERS: &str =
    "the certificate is not for servers; issue it with the extended key usage serverAuth";

/// The names of the settings that choose certificates.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// The parameter that names the file of trusted CAs.
    pub ca: &'static str,
    /// The parameters that name the client's certificate and its key. `None` if Shopbell sends none.
    pub client: Option<&'static str>,
}

/// Returns the reason of an error that TLS or one of its sources reports, with the remedy. Returns
/// nothing for an error that does not come from TLS.
pub fn reason(error: &(dyn Error + 'static), settings: Settings) -> Option<String> {
    let reason = match tls_error(error)? {
        TlsError::InvalidCertificate(error) => certificate(error, settings),
        TlsError::InvalidMessage(_) | TlsError::InappropriateMessage { .. } => {
            "the port does not speak TLS; use the port for TLS".to_owned()
        }
        TlsError::PeerIncompatible(_)
        | TlsError::AlertReceived(AlertDescription::ProtocolVersion) => {
            "the server has neither TLS 1.2 nor TLS 1.3; enable one of them there".to_owned()
        }
        // TLS 1.2 has no alert of its own for a missing certificate (RFC 8446 §6.2).
        TlsError::AlertReceived(
            AlertDescription::CertificateRequired
            | AlertDescription::HandshakeFailure
            | AlertDescription::BadCertificate
            | AlertDescription::UnknownCA
            | AlertDescription::CertificateExpired
            | AlertDescription::AccessDenied,
        ) => match settings.client {
            Some(client) => format!(
                "the server requires a client certificate that it trusts; set {client}"
            ),
            None => "the server requires a client certificate, and Shopbell sends none; allow it without one".to_owned(),
        },
        other => format!("TLS failed: {other}"),
    };
    Some(reason)
}

fn certificate(error: &CertificateError, settings: Settings) -> String {
    match error {
        // A CA that was made again has the same name and another key.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => format!(
            "no trusted CA has signed the certificate of the server; name the file of its CA with {}",
            settings.ca
        ),
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "the certificate of the server has expired; renew it".to_owned()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "the certificate of the server is not valid yet; compare the clocks".to_owned()
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "the certificate of the server is for another name; use a name that it contains, or add this one to it"
                .to_owned()
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            NOT_FOR_SERVERS.to_owned()
        }
        CertificateError::Other(other) => match format!("{other:?}") {
            // The verifier of the system has a type of its own for it, which it does not export.
            text if text.contains("EkuError") => NOT_FOR_SERVERS.to_owned(),
            text if text.contains("CaUsedAsEndEntity") => {
                "the certificate of the server is one of a CA or has signed itself; issue one by a CA for the server"
                    .to_owned()
            }
            text => format!("the certificate of the server is not valid: {text}; replace it"),
        },
        other => format!("the certificate of the server is not valid: {other}; replace it"),
    }
}

/// Finds the error of rustls among an error and its sources.
fn tls_error<'e>(error: &'e (dyn Error + 'static)) -> Option<&'e TlsError> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        // The source of an I/O error is the source of the error in it.
        let inner = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref);
        next = match inner {
            Some(inner) => Some(inner as &(dyn Error + 'static)),
            None => error.source(),
        };
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_tls_is_found_inside_of_others() {
        const SETTINGS: Settings = Settings {
            ca: "the-ca",
            client: Some("the-client"),
        };
        let wrapped = |error: TlsError| io::Error::other(io::Error::other(error));
        let found = |error: TlsError| reason(&wrapped(error), SETTINGS).unwrap_or_default();
        assert!(found(CertificateError::UnknownIssuer.into()).contains("the-ca"));
        let alert = TlsError::AlertReceived(AlertDescription::CertificateRequired);
        assert!(found(alert).contains("the-client"));
        assert!(found(TlsError::DecryptError).starts_with("TLS failed: "));
        assert_eq!(reason(&io::Error::other("a reset"), SETTINGS), None);
    }
}
