//! A folder in memory that fails as real ones do: short writes, syncs that fail and lose or keep what they should have
//! written, names that are not durable, a full disk, and an end of the process or of the machine at any operation.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::directory::{Directory, Error};

/// How a run ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Crash {
    /// Only the process ends: what it wrote stays in the page cache.
    Process,
    /// The machine ends: any part of what was not synced is lost.
    Machine,
}

#[derive(Debug, Default, Clone)]
struct Inode {
    /// What a reader sees.
    cached: Vec<u8>,
    /// What a crash of the machine leaves.
    durable: Vec<u8>,
    /// Pieces of `cached` that a sync would make durable.
    dirty: Vec<(usize, Vec<u8>)>,
}

#[derive(Debug)]
pub(crate) struct Disk {
    inodes: Vec<Inode>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    /// Names changed since the last sync of the folder, with what they mean now.
    changed_names: Vec<(String, Option<usize>)>,
    random: StdRng,
    /// Probability that an operation fails.
    pub(crate) fault_rate: f64,
    /// Operations until everything stops.
    pub(crate) crash_after: Option<u32>,
    pub(crate) capacity: u64,
}

/// The simulated folder; clones share the disk.
#[derive(Debug, Clone)]
pub(crate) struct Simulated(pub(crate) Rc<RefCell<Disk>>);

fn overlay(onto: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    if onto.len() < at + bytes.len() {
        onto.resize(at + bytes.len(), 0);
    }
    onto[at..at + bytes.len()].copy_from_slice(bytes);
}

impl Simulated {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Rc::new(RefCell::new(Disk {
            inodes: Vec::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            changed_names: Vec::new(),
            random: StdRng::seed_from_u64(seed),
            fault_rate: 0.0,
            crash_after: None,
            capacity: u64::MAX,
        })))
    }
}

impl Inode {
    /// A part of what is dirty reaches the disk, in any order, torn anywhere.
    fn write_back_some(&mut self, random: &mut StdRng) {
        for (at, bytes) in std::mem::take(&mut self.dirty) {
            for (index, piece) in bytes.chunks(16).enumerate() {
                if random.random_bool(0.6) {
                    overlay(&mut self.durable, at + index * 16, piece);
                }
            }
        }
    }
}

impl Disk {
    /// What a new process finds.
    pub(crate) fn restart(&mut self, crash: Crash) {
        self.crash_after = None;
        if crash == Crash::Process {
            return;
        }
        for inode in &mut self.inodes {
            inode.write_back_some(&mut self.random);
            inode.cached.clone_from(&inode.durable);
        }
        for (name, inode) in std::mem::take(&mut self.changed_names) {
            if self.random.random_bool(0.5) {
                set_name(&mut self.durable_names, name, inode);
            }
        }
        self.names.clone_from(&self.durable_names);
    }

    /// Flips a bit that a file holds.
    pub(crate) fn damage(&mut self, name: &str, bit: usize) {
        let inode = &mut self.inodes[self.names[name]];
        for bytes in [&mut inode.cached, &mut inode.durable] {
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }

    pub(crate) fn file_names(&self) -> Vec<String> {
        self.names.keys().cloned().collect()
    }

    /// Whether this operation fails.
    fn fails(&mut self) -> bool {
        if let Some(left) = &mut self.crash_after {
            if *left == 0 {
                return true;
            }
            *left -= 1;
        }
        self.fault_rate > 0.0 && self.random.random_bool(self.fault_rate)
    }

    fn change_name(&mut self, name: &str, inode: Option<usize>) {
        set_name(&mut self.names, name.to_owned(), inode);
        self.changed_names.push((name.to_owned(), inode));
    }

    fn used(&self) -> u64 {
        self.names.values().map(|inode| self.inodes[*inode].cached.len() as u64).sum()
    }

    fn inode(&self, name: &str) -> Result<usize, Error> {
        self.names.get(name).copied().ok_or_else(|| error("find", io::ErrorKind::NotFound))
    }

    /// Makes an inode's contents durable, or fails and forgets that they are not.
    fn sync(&mut self, inode: usize) -> Result<(), Error> {
        let failed = self.fails();
        let Self { inodes, random, .. } = self;
        let inode = &mut inodes[inode];
        if !failed {
            for (at, bytes) in std::mem::take(&mut inode.dirty) {
                overlay(&mut inode.durable, at, &bytes);
            }
            return Ok(());
        }
        let dirty = inode.dirty.clone();
        inode.write_back_some(random);
        if random.random_bool(0.5) {
            for (at, bytes) in dirty {
                let mut lost = inode.durable.get(at..).unwrap_or_default().to_vec();
                lost.resize(bytes.len(), 0);
                overlay(&mut inode.cached, at, &lost);
            }
        }
        Err(error("sync", io::ErrorKind::Other))
    }
}

fn set_name(names: &mut BTreeMap<String, usize>, name: String, inode: Option<usize>) {
    match inode {
        Some(inode) => names.insert(name, inode),
        None => names.remove(&name),
    };
}

fn error(action: &'static str, kind: io::ErrorKind) -> Error {
    Error { action, path: "simulated".into(), source: kind.into() }
}

impl Directory for Simulated {
    type File = usize;

    fn list(&mut self) -> Result<Vec<(String, u64)>, Error> {
        let mut disk = self.0.borrow_mut();
        if disk.fails() {
            return Err(error("list", io::ErrorKind::Other));
        }
        let names = disk.names.iter();
        Ok(names.map(|(name, inode)| (name.clone(), disk.inodes[*inode].cached.len() as u64)).collect())
    }

    fn create(&mut self, name: &str) -> Result<usize, Error> {
        let mut disk = self.0.borrow_mut();
        assert!(!disk.names.contains_key(name), "{name} exists");
        let failed = disk.fails();
        if failed && disk.random.random_bool(0.5) {
            return Err(error("create", io::ErrorKind::Other));
        }
        let inode = disk.inodes.len();
        disk.inodes.push(Inode::default());
        disk.change_name(name, Some(inode));
        if failed { Err(error("create", io::ErrorKind::Other)) } else { Ok(inode) }
    }

    fn write(&mut self, file: &mut usize, bytes: &[u8]) -> Result<(), Error> {
        let mut disk = self.0.borrow_mut();
        let room = usize::try_from(disk.capacity.saturating_sub(disk.used())).unwrap_or(usize::MAX);
        let mut written = bytes.len().min(room);
        if disk.fails() {
            written = disk.random.random_range(0..=written);
        } else if written == bytes.len() {
            let at = disk.inodes[*file].cached.len();
            overlay(&mut disk.inodes[*file].cached, at, bytes);
            disk.inodes[*file].dirty.push((at, bytes.to_vec()));
            return Ok(());
        }
        let at = disk.inodes[*file].cached.len();
        overlay(&mut disk.inodes[*file].cached, at, &bytes[..written]);
        disk.inodes[*file].dirty.push((at, bytes[..written].to_vec()));
        Err(error("write", io::ErrorKind::StorageFull))
    }

    fn sync(&mut self, file: &mut usize) -> Result<(), Error> {
        self.0.borrow_mut().sync(*file)
    }

    fn sync_names(&mut self) -> Result<(), Error> {
        let mut disk = self.0.borrow_mut();
        if disk.fails() {
            return Err(error("sync the folder", io::ErrorKind::Other));
        }
        disk.changed_names.clear();
        disk.durable_names = disk.names.clone();
        Ok(())
    }

    fn read(&mut self, name: &str, offset: u64, count: usize) -> Result<Vec<u8>, Error> {
        let mut disk = self.0.borrow_mut();
        if disk.fails() {
            return Err(error("read", io::ErrorKind::Other));
        }
        let inode = disk.inode(name)?;
        let from = disk.inodes[inode].cached.get(usize::try_from(offset).unwrap()..).unwrap_or_default();
        Ok(from[..from.len().min(count)].to_vec())
    }

    fn truncate(&mut self, name: &str, length: u64) -> Result<(), Error> {
        let mut disk = self.0.borrow_mut();
        if disk.fails() {
            return Err(error("truncate", io::ErrorKind::Other));
        }
        let (inode, length) = (disk.inode(name)?, usize::try_from(length).unwrap());
        let file = &mut disk.inodes[inode];
        file.cached.resize(length, 0);
        for (at, bytes) in &mut file.dirty {
            bytes.truncate(length.saturating_sub(*at));
        }
        disk.sync(inode)?;
        disk.inodes[inode].durable.resize(length, 0);
        Ok(())
    }

    fn rename(&mut self, from: &str, to: &str) -> Result<(), Error> {
        let mut disk = self.0.borrow_mut();
        if disk.fails() {
            return Err(error("rename", io::ErrorKind::Other));
        }
        if let Ok(inode) = disk.inode(from) {
            disk.change_name(to, Some(inode));
            disk.change_name(from, None);
        }
        Ok(())
    }

    fn remove(&mut self, name: &str) -> Result<(), Error> {
        let mut disk = self.0.borrow_mut();
        let failed = disk.fails();
        if failed && disk.random.random_bool(0.5) {
            return Err(error("remove", io::ErrorKind::Other));
        }
        if disk.names.contains_key(name) {
            disk.change_name(name, None);
        }
        if failed { Err(error("remove", io::ErrorKind::Other)) } else { Ok(()) }
    }

    fn free_bytes(&mut self) -> Result<u64, Error> {
        let mut disk = self.0.borrow_mut();
        if disk.fails() {
            return Err(error("measure", io::ErrorKind::Other));
        }
        Ok(disk.capacity.saturating_sub(disk.used()))
    }
}
