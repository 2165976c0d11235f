//! A small file system in memory that can be filled. Only processes that enter it see it.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, ErrorKind, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Bytes that are written at once while it is filled.
const BLOCK_BYTES: usize = 64 * 1024;

/// It ends with the process that holds it, and that process ends with this one.
pub struct SmallDisk {
    holder: Child,
    place: PathBuf,
}

impl SmallDisk {
    /// Covers the folder at `place`, and belongs to the same user. It needs root.
    pub fn mounted_at(place: &Path, megabytes: u32) -> Self {
        let script = r#"
            owner=$(stat -c %u:%g "$1")
            mount -t tmpfs -o "size=$2m" small-disk "$1"
            chown "$owner" "$1"
            echo mounted
            # It ends when its input is closed.
            exec cat"#;
        let mut holder = Command::new("unshare")
            .args(["--mount", "sh", "-euc", script, "small-disk"])
            .arg(place)
            .arg(megabytes.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare runs");
        let mut line = String::new();
        BufReader::new(holder.stdout.take().expect("stdout is piped"))
            .read_line(&mut line)
            .expect("the holder prints text");
        assert_eq!(line, "mounted\n", "only root can mount a small disk");
        Self {
            holder,
            place: place.to_owned(),
        }
    }

    /// The same command, in the mounts of the holder.
    pub fn command(&self, command: &Command) -> Command {
        let mut inside = Command::new("nsenter");
        inside
            .arg(format!("--mount=/proc/{}/ns/mnt", self.holder.id()))
            .arg("--")
            .arg(command.get_program())
            .args(command.get_args());
        inside
    }

    /// Writes until no space is left.
    pub fn fill(&self) {
        let ballast = self.ballast();
        let mut file = File::create(&ballast).expect("the ballast can be made");
        fs::set_permissions(ballast, fs::Permissions::from_mode(0o600)).ok();
        for bytes in [BLOCK_BYTES, 1] {
            let block = vec![1; bytes];
            let error = loop {
                if let Err(error) = file.write_all(&block) {
                    break error;
                }
            };
            assert_eq!(error.kind(), ErrorKind::StorageFull, "{error}");
        }
    }

    /// Frees the space that `fill` took.
    pub fn free(&self) {
        fs::remove_file(self.ballast()).expect("the ballast can be removed");
    }

    fn ballast(&self) -> PathBuf {
        let place = self.place.strip_prefix("/").expect("an absolute path");
        Path::new("/proc")
            .join(self.holder.id().to_string())
            .join("root")
            .join(place)
            .join("ballast")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        self.holder.kill().ok();
        self.holder.wait().ok();
    }
}
