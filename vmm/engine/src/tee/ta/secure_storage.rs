// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Objects that outlive a session.

use pinbed_abi::ta::secure_storage::{DELETE, READ, UUID, WRITE};
use pinbed_abi::tee::{
    TEEC_ERROR_ITEM_NOT_FOUND, TEEC_ERROR_NOT_SUPPORTED, TEEC_ERROR_STORAGE_NO_SPACE,
};

use super::{Descriptor, TrustedApp};
use crate::tee::invocation::{Failure, Invocation, Kind};
use crate::tee::storage::{MAX_ID, MAX_OBJECT};

pub const DESCRIPTOR: Descriptor = Descriptor {
    uuid: UUID,
    single_instance: true,
    secure_data_path: false,
    new: || Box::new(SecureStorage),
};

struct SecureStorage;

const NOT_FOUND: Failure = Failure::Code(TEEC_ERROR_ITEM_NOT_FOUND);

impl TrustedApp for SecureStorage {
    /// Takes any parameters and ignores them, as the example that clients know does.
    fn open(&mut self, _: &mut Invocation) -> Result<(), Failure> {
        Ok(())
    }

    fn invoke(&mut self, function: u32, call: &mut Invocation) -> Result<(), Failure> {
        let second = match function {
            READ => Kind::MemrefOut,
            WRITE => Kind::MemrefIn,
            DELETE => Kind::Unused,
            _ => return Err(Failure::Code(TEEC_ERROR_NOT_SUPPORTED)),
        };
        call.expect([Kind::MemrefIn, second, Kind::Unused, Kind::Unused])?;
        let id = call.memref(0)?;
        if id.size() > MAX_ID {
            return Err(Failure::Panic(
                "an object id is longer than TEE_OBJECT_ID_MAX_LEN",
            ));
        }
        let id = call.read_all(id, MAX_ID)?;
        match function {
            READ => {
                let contents = call.storage().get(UUID, id).ok_or(NOT_FOUND)?;
                let to = call.make_room(1, contents.len() as u64)?;
                call.write(to, &contents)
            }
            WRITE => {
                let no_space = Failure::Code(TEEC_ERROR_STORAGE_NO_SPACE);
                let contents = call.memref(1)?;
                if contents.size() > MAX_OBJECT {
                    return Err(no_space);
                }
                let contents = call.read_message(contents, MAX_OBJECT)?;
                let put = call.storage().put(UUID, id, contents.to_vec());
                put.map_err(|_| no_space)
            }
            _ => match call.storage().delete(UUID, id) {
                true => Ok(()),
                false => Err(NOT_FOUND),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tee::rig::*;
    use crate::tee::storage::{MAX_OBJECTS, MAX_STORAGE};
    use pinbed_abi::tee::*;

    fn write(session: &Session, id: &[u8], contents: &[u8]) -> Reply {
        let id = session.rig.buffer(id).all(PARAM_MEMREF_INPUT);
        let contents = session.rig.buffer(contents).all(PARAM_MEMREF_INPUT);
        session.invoke(WRITE, [id, contents, NONE, NONE])
    }

    fn read(session: &Session, id: &[u8], room: usize) -> (Reply, Vec<u8>) {
        let id = session.rig.buffer(id).all(PARAM_MEMREF_INPUT);
        let to = session.rig.room(room);
        let reply = session.invoke(READ, [id, to.all(PARAM_MEMREF_OUTPUT), NONE, NONE]);
        let size = reply.size(1).min(to.len()) as usize;
        (reply, session.rig.get(&to)[..size].to_vec())
    }

    fn delete(session: &Session, id: &[u8]) -> (u32, u32) {
        let id = session.rig.buffer(id).all(PARAM_MEMREF_INPUT);
        session.invoke(DELETE, [id, NONE, NONE, NONE]).verdict()
    }

    const NOT_FOUND: (u32, u32) = (TEEC_ERROR_ITEM_NOT_FOUND, TEEC_ORIGIN_TRUSTED_APP);

    #[test]
    fn objects_outlive_sessions_and_device_resets() {
        let rig = Rig::new();
        let session = rig.open(1, UUID);
        let contents = [0xa1; 7000];
        write(&session, b"object#1", &contents).ok();
        assert_eq!(session.close(), TEEC_SUCCESS);
        rig.engine.reset();
        let session = rig.open(2, UUID);
        let (reply, bytes) = read(&session, b"object#1", 7100);
        reply.ok();
        assert_eq!(bytes, contents);
        write(&session, b"object#1", b"anew").ok();
        assert_eq!(read(&session, b"object#1", 7000).1, b"anew");
        assert_eq!(delete(&session, b"object#1"), DONE);
        assert_eq!(read(&session, b"object#1", 7000).0.verdict(), NOT_FOUND);
        assert_eq!(delete(&session, b"object#1"), NOT_FOUND);
    }

    #[test]
    fn a_short_buffer_learns_the_size_and_gets_no_byte() {
        let rig = Rig::new();
        let session = rig.open(1, UUID);
        write(&session, b"object#2", b"0123456789").ok();
        let short = (TEEC_ERROR_SHORT_BUFFER, TEEC_ORIGIN_TRUSTED_APP);
        let (reply, bytes) = read(&session, b"object#2", 9);
        assert_eq!(reply.verdict(), short);
        assert_eq!(reply.size(1), 10);
        assert_eq!(bytes, [0xee; 9]);
        let id = rig.buffer(b"object#2").all(PARAM_MEMREF_INPUT);
        let null = param(PARAM_MEMREF_OUTPUT, 0, 0, 0);
        let reply = session.invoke(READ, [id, null, NONE, NONE]);
        assert_eq!((reply.verdict(), reply.size(1)), (short, 10));
    }

    #[test]
    fn takes_one_session_at_a_time() {
        let rig = Rig::new();
        let session = rig.open(1, UUID);
        let busy = (TEEC_ERROR_BUSY, TEEC_ORIGIN_TEE);
        assert_eq!(rig.call(&open(2, UUID)).verdict(), busy);
        session.close();
        rig.open(2, UUID);
    }

    #[test]
    fn bounds_ids_objects_and_their_number() {
        let rig = Rig::new();
        let session = rig.open(1, UUID);
        write(&session, &[7; 64], b"longest id").ok();
        let large = vec![0; MAX_OBJECT as usize + 1];
        let verdict = write(&session, b"large", &large).verdict();
        let no_space = (TEEC_ERROR_STORAGE_NO_SPACE, TEEC_ORIGIN_TRUSTED_APP);
        assert_eq!(verdict, no_space);
        for n in 1..MAX_OBJECTS {
            write(&session, format!("{n:04}").as_bytes(), b"..").ok();
        }
        let verdict = write(&session, b"one more", b"..").verdict();
        assert_eq!(verdict, no_space);
        write(&session, b"0001", b"replaced").ok();
        let verdict = write(&session, &[7; 65], b"..").verdict();
        assert_eq!(verdict, (TEEC_ERROR_TARGET_DEAD, TEEC_ORIGIN_TEE));
    }

    #[test]
    fn bounds_the_bytes_of_all_objects() {
        let rig = Rig::new();
        let session = rig.open(1, UUID);
        let room = rig.room(MAX_OBJECT as usize).all(PARAM_MEMREF_INPUT);
        let write = |name: u64| {
            let id = rig.buffer(&name.to_le_bytes()).all(PARAM_MEMREF_INPUT);
            session.invoke(WRITE, [id, room, NONE, NONE]).result
        };
        let whole = MAX_STORAGE as u64 / MAX_OBJECT;
        assert!((0..whole).all(|n| write(n) == TEEC_SUCCESS));
        assert_eq!(write(whole), TEEC_ERROR_STORAGE_NO_SPACE);
        assert_eq!(write(0), TEEC_SUCCESS, "replaced by one as large");
        assert_eq!(delete(&session, &3u64.to_le_bytes()), DONE);
        assert_eq!(write(whole), TEEC_SUCCESS);
    }
}
