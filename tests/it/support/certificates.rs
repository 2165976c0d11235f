//! Certificates by a CA of the story, good and bad, made by openssl.

use std::path::PathBuf;
use std::process::Command;

use super::{PATIENCE, run_any};

/// A CA in a folder of its own.
pub struct Authority {
    folder: PathBuf,
}

/// A certificate and its key.
#[derive(Debug, Clone)]
pub struct Certificate {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// The content of a certificate.
#[derive(Debug, Clone, Copy)]
pub struct Content {
    pub names: &'static str,
    pub usage: &'static str,
    /// As openssl writes times: YYYYMMDDHHMMSSZ.
    pub from: &'static str,
    pub until: &'static str,
}

impl Default for Content {
    /// Good for a server on this machine.
    fn default() -> Self {
        Self {
            names: "DNS:localhost,IP:127.0.0.1",
            usage: "serverAuth",
            from: "20200101000000Z",
            until: "20491231235959Z",
        }
    }
}

impl Authority {
    pub async fn new(folder: String) -> Self {
        let authority = Self {
            folder: folder.into(),
        };
        authority
            .run(
                "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 -subj /CN=ca-of-${PWD##*/} \
                     -keyout ca.key -out ca.pem
                 : >index.txt
                 printf '[ca]\\ndefault_ca = it\\n[it]\\ndatabase = index.txt\\nnew_certs_dir = .\\nrand_serial = yes\\n\
                         default_md = sha256\\nunique_subject = no\\npolicy = any\\n[any]\\ncommonName = supplied\\n' >ca.cnf",
            )
            .await;
        authority
    }

    /// The file of the CA.
    pub fn file(&self) -> PathBuf {
        self.folder.join("ca.pem")
    }

    /// Issues a certificate. `name` is that of its files.
    pub async fn issue(&self, name: &str, content: Content) -> Certificate {
        let Content {
            names,
            usage,
            from,
            until,
        } = content;
        let extensions = format!(
            "subjectAltName={names}\nextendedKeyUsage={usage}\nbasicConstraints=CA:false\n"
        );
        let file = self.folder.join(format!("{name}.ext"));
        std::fs::write(file, extensions).expect("a file can be written");
        self.run(&format!(
            "openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=shopbell -keyout {name}.key -out {name}.csr"
        ))
        .await;
        self.run(&format!(
            "openssl ca -batch -notext -config ca.cnf -cert ca.pem -keyfile ca.key -startdate {from} -enddate {until} \
                 -extfile {name}.ext -in {name}.csr -out {name}.pem"
        ))
        .await;
        self.certificate(name)
    }

    /// A certificate that has signed itself.
    pub async fn self_signed(&self) -> Certificate {
        self.run(
            "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 -subj /CN=localhost \
                 -addext subjectAltName=DNS:localhost,IP:127.0.0.1 -keyout self.key -out self.pem",
        )
        .await;
        self.certificate("self")
    }

    fn certificate(&self, name: &str) -> Certificate {
        Certificate {
            certificate: self.folder.join(format!("{name}.pem")),
            key: self.folder.join(format!("{name}.key")),
        }
    }

    async fn run(&self, script: &str) {
        let mut bash = Command::new("bash");
        bash.args(["-euc", script]).current_dir(&self.folder);
        run_any(bash, PATIENCE).await.succeeded();
    }
}
