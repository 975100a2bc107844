//! Decides which user the server runs as: the caller, or an unprivileged user when the caller is root.

use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::Error;

/// The user that the server's files and process belong to.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Owner {
    /// The caller itself.
    Caller,
    /// Another user: the caller is root.
    Other { uid: u32, gid: u32 },
}

impl Owner {
    pub(crate) fn for_server() -> Result<Self, Error> {
        if !rustix::process::geteuid().is_root() {
            return Ok(Self::Caller);
        }
        let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        let found = ["postgres", "nobody"].iter().find_map(|user| lookup(&passwd, user));
        let (uid, gid) = found.ok_or(Error::NoUser)?;
        Ok(Self::Other { uid, gid })
    }

    pub(crate) fn ids(self) -> Option<(u32, u32)> {
        match self {
            Self::Caller => None,
            Self::Other { uid, gid } => Some((uid, gid)),
        }
    }

    /// Makes `command` run as this user, with no supplementary groups.
    pub(crate) fn apply(self, command: &mut Command) {
        if let Some((uid, gid)) = self.ids() {
            command.uid(uid).gid(gid);
        }
    }
}

/// Ids of `user` in the text of `/etc/passwd`; never those of root.
fn lookup(passwd: &str, user: &str) -> Option<(u32, u32)> {
    let mut fields = passwd
        .lines()
        .map(|line| line.split(':'))
        .find_map(|mut fields| (fields.next() == Some(user)).then(|| fields.skip(1)))?;
    let ids = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    (ids.0 != 0).then_some(ids)
}

#[cfg(test)]
mod tests {
    use super::lookup;

    #[test]
    fn ids_come_from_the_named_line_and_are_never_root() {
        let passwd = "root:x:0:0::/root:/bin/sh\npostgres:x:101:104::/var:/bin/bash\nodd:x:0:7::/:/bin/sh\n";
        assert_eq!(lookup(passwd, "postgres"), Some((101, 104)));
        assert_eq!(lookup(passwd, "post"), None);
        assert_eq!(lookup(passwd, "odd"), None);
    }
}
