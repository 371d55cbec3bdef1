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

/// The storage is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the TEE's storage is full; delete an object")]
pub struct Full;

/// By the application that owns them, and their ids.
type Objects = BTreeMap<(Uuid, Vec<u8>), Vec<u8>>;

/// All objects. An application sees its own only.
#[derive(Debug, Default)]
pub struct Storage {
    objects: Mutex<Objects>,
}

impl Storage {
    /// The object's contents.
    pub fn get(&self, app: Uuid, id: Vec<u8>) -> Option<Vec<u8>> {
        self.lock().get(&(app, id)).cloned()
    }

    /// Creates or replaces an object.
    pub fn put(&self, app: Uuid, id: Vec<u8>, contents: Vec<u8>) -> Result<(), Full> {
        let mut objects = self.lock();
        let key = (app, id);
        if objects.len() >= MAX_OBJECTS && !objects.contains_key(&key) {
            return Err(Full);
        }
        objects.insert(key, contents);
        Ok(())
    }

    /// Deletes an object; false if there is none.
    pub fn delete(&self, app: Uuid, id: Vec<u8>) -> bool {
        self.lock().remove(&(app, id)).is_some()
    }

    fn lock(&self) -> MutexGuard<'_, Objects> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
