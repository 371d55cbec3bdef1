// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Persistent objects of trusted applications: persistent beyond sessions and device resets, but only in memory.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use pinbed_abi::ta::Uuid;

/// Longest object id in bytes (`TEE_OBJECT_ID_MAX_LEN`).
pub const MAX_ID: u64 = 64;
/// Largest object in bytes.
pub const MAX_OBJECT: u64 = 1 << 20;
/// Objects of all applications together.
pub const MAX_OBJECTS: usize = 64;
/// Bytes of all objects together.
pub const MAX_STORAGE: usize = 16 << 20;

/// The storage is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the TEE's storage is full; delete an object")]
pub struct Full;

#[derive(Debug, Default)]
struct Objects {
    /// By the application that owns them, and their ids.
    all: BTreeMap<(Uuid, Vec<u8>), Vec<u8>>,
    bytes: usize,
}

/// All objects. An application sees its own only.
#[derive(Debug, Default)]
pub struct Storage {
    objects: Mutex<Objects>,
}

impl Storage {
    /// The object's contents.
    pub fn get(&self, app: Uuid, id: Vec<u8>) -> Option<Vec<u8>> {
        self.lock().all.get(&(app, id)).cloned()
    }

    /// Creates or replaces an object.
    pub fn put(&self, app: Uuid, id: Vec<u8>, contents: Vec<u8>) -> Result<(), Full> {
        let mut objects = self.lock();
        let key = (app, id);
        let old = objects.all.get(&key).map(Vec::len);
        let bytes = objects.bytes - old.unwrap_or(0) + contents.len();
        if old.is_none() && objects.all.len() >= MAX_OBJECTS || bytes > MAX_STORAGE {
            return Err(Full);
        }
        objects.all.insert(key, contents);
        objects.bytes = bytes;
        Ok(())
    }

    /// Deletes an object; false if there is none.
    pub fn delete(&self, app: Uuid, id: Vec<u8>) -> bool {
        let mut objects = self.lock();
        let deleted = objects.all.remove(&(app, id));
        objects.bytes -= deleted.as_ref().map_or(0, Vec::len);
        deleted.is_some()
    }

    fn lock(&self) -> MutexGuard<'_, Objects> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
