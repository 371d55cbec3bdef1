// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Where the tests' statements are from.

pub const FOLLOW_PFN: &str = "linux-media/dri-devel 2020-11-20, '[PATCH v6 09/17] media/videbuf1|2: Mark follow_pfn usage as unsafe'";
pub const FRAME_VEC: &str =
    "linux-media/linux-mm 2020-10-07, '[PATCH 2/2] mm/frame-vec: use FOLL_LONGTERM'";
pub const DMABUF_PFNMAP: &str =
    "dri-devel 2022-11-22, '[PATCH] dma-buf: Require VM_PFNMAP vma for mmap'";
pub const UNSAFE_FOLLOW_PFN: &str =
    "linux-mm/dri-devel 2020-10-09, '[PATCH v2 09/17] mm: Add unsafe_follow_pfn'";
pub const TEE_LONGTERM: &str =
    "linux-mm/op-tee 2023-05-17, '[PATCH] tee: add FOLL_LONGTERM for CMA case when alloc shm'";
pub const PIN_USER_PAGES: &str = "Documentation/core-api/pin_user_pages.rst";
pub const LAZY: &str =
    "commit 6c8e2a256915 'mm: fix race between MADV_FREE reclaim and blkdev direct IO read'";
pub const UDMABUF_DIRTY: &str =
    "Documentation/core-api/pin_user_pages.rst; drivers/dma-buf/udmabuf.c, unpin_all_folios()";
pub const ZEROED: &str = "include/media/videobuf2-core.h, struct vb2_mem_ops, alloc; drivers/dma-buf/heaps: 'Zero' and __GFP_ZERO";
pub const IO_URING: &str =
    "man 2 io_uring_register, IORING_REGISTER_BUFFERS; io_uring/rsrc.c, io_buffer_account_pin()";
pub const UDMABUF_FOLIOS: &str = "include/uapi/linux/udmabuf.h, struct udmabuf_create_item, offset; mm/gup.c, memfd_pin_folios(), offset";
pub const UDMABUF_SEALS: &str =
    "drivers/dma-buf/udmabuf.c, check_memfd_seals(), SEALS_WANTED and SEALS_DENIED";
pub const DMABUF_MMAP: &str = "drivers/dma-buf/dma-buf.c, dma_buf_mmap_internal()";
pub const UDMABUF_VMAP: &str = "include/uapi/linux/udmabuf.h, struct udmabuf_create_item, offset; drivers/dma-buf/udmabuf.c, vmap_udmabuf()";
pub const TEE_DIRTY: &str = "Documentation/core-api/pin_user_pages.rst, unpin_user_pages_dirty_lock(); drivers/tee/tee_shm.c, release_registered_pages()";
pub const USERP: &str = "Documentation/userspace-api/media/v4l/userp.rst";
pub const DMABUF: &str = "Documentation/userspace-api/media/v4l/dmabuf.rst";
pub const EXPBUF: &str = "Documentation/userspace-api/media/v4l/vidioc-expbuf.rst";
pub const QBUF: &str = "Documentation/userspace-api/media/v4l/vidioc-qbuf.rst";
pub const STREAMON: &str = "Documentation/userspace-api/media/v4l/vidioc-streamon.rst";
pub const REQBUFS: &str = "Documentation/userspace-api/media/v4l/vidioc-reqbufs.rst";
pub const PIXFMT: &str = "Documentation/userspace-api/media/v4l/pixfmt.rst";
pub const COLORSPACES: &str = "Documentation/userspace-api/media/v4l/colorspaces-defs.rst and pixfmt-v4l2.rst, V4L2_PIX_FMT_FLAG_SET_CSC";
pub const QUANTIZATION: &str = "drivers/media/common/v4l2-tpg/v4l2-tpg-core.c, tpg_recalc() and precalculate_color(), TGP_COLOR_ENC_LUMA";
pub const DEVICE: &str = "vmm/abi/src/wire.rs";
pub const DMABUF_SYNC: &str = "include/uapi/linux/dma-buf.h, struct dma_buf_sync";
pub const UDMABUF: &str =
    "drivers/dma-buf/udmabuf.c, udmabuf_create() and mmap_udmabuf(); found by this test";
pub const UDMABUF_SYNC: &str = "include/uapi/linux/dma-buf.h, struct dma_buf_sync; what comes of it on arm64: github.com/raspberrypi/linux/pull/6995, 2025-08-12";
pub const FRAME_VECTOR: &str = "drivers/media/common/videobuf2/frame_vector.c, get_vaddr_frames()";
pub const UNSHARE: &str = "mm/gup.c, gup_must_unshare() and FAULT_FLAG_UNSHARE";
pub const EARLY_COW: &str =
    "commit 70e806e4e645 'mm: Do early cow for pinned pages during fork() for ptes'";
pub const MODULE: &str = "kernel/module/main.c, try_stop_module()";
pub const PREPARE_USERPTR: &str = "include/media/videobuf2-core.h, struct vb2_ops, buf_cleanup; drivers/media/common/videobuf2/videobuf2-core.c, __prepare_userptr()";
pub const TEE_UAPI: &str = "include/uapi/linux/tee.h";
pub const TEE_CLIENT_API: &str = "GlobalPlatform TEE Client API Specification v1.0, 4.4 and 4.5";
pub const TEE_SHM: &str = "drivers/tee/tee_shm.c, register_shm_helper() and tee_shm_release()";
pub const PROTECTED: &str = "include/linux/tee_core.h, struct tee_protmem_pool; include/uapi/linux/tee.h, TEE_IOC_SHM_REGISTER_FD";
pub const MLOCK: &str = "Documentation/core-api/pin_user_pages.rst; man 2 getrlimit, RLIMIT_MEMLOCK; mm/util.c, account_locked_vm()";
pub const TEE_LENGTH: &str =
    "include/uapi/linux/tee.h, struct tee_ioctl_shm_register_data; CVE-2022-50080";
pub const TEE_ID: &str = "include/uapi/linux/tee.h, struct tee_ioctl_param; drivers/tee/tee_core.c, params_from_user(); found by this test";
pub const PARTIAL_PIN: &str =
    "Documentation/core-api/pin_user_pages.rst; drivers/tee/tee_shm.c, register_shm_helper()";
pub const TEE_RACE: &str =
    "drivers/tee/tee_shm.c, tee_shm_get_from_id() and tee_shm_put(); CVE-2021-44733";
pub const TEE_MMAP: &str =
    "man 2 mmap, offset; drivers/tee/tee_shm.c, tee_shm_fop_mmap(); found by this test";
pub const OPTEE_EXAMPLES: &str = "github.com/linaro-swg/optee_examples: the host and ta directories of ecdh, ecdsa, sha and sign_verify";
pub const LIBTEEC: &str = "github.com/OP-TEE/optee_client, libteec/src/tee_client_api.c";
pub const SP800_38A: &str =
    "NIST SP 800-38A, F.5.1; GlobalPlatform TEE Client API Specification v1.0, 4.5";
pub const HOTP: &str = "RFC 4226, appendix D";
pub const DMA_CONTIG: &str =
    "drivers/media/common/videobuf2/videobuf2-dma-contig.c, vb2_dc_get_userptr()";
pub const DAX: &str = "linux-media/linux-mm 2020-10-07, '[PATCH 2/2] mm/frame-vec: use FOLL_LONGTERM'; mm/gup.c, check_vma_flags() and vma_is_fsdax()";
pub const WRITABLE_FILE: &str =
    "6.5, 'mm/gup: disallow FOLL_LONGTERM GUP-nonfast writing to file-backed mappings'";
pub const SECRETMEM: &str =
    "5.14, 'mm: introduce memfd_secret system call to create \"secret\" memory areas'";
pub const GUARD: &str = "man 2 madvise, MADV_GUARD_INSTALL";
pub const TEE_OFFLINE: &str = "Documentation/admin-guide/mm/memory-hotplug.rst, ZONE_MOVABLE; linux-mm/op-tee 2023-05-17, '[PATCH] tee: add FOLL_LONGTERM for CMA case when alloc shm'";
pub const PROTECT_PINNED: &str =
    "mm/memory.c, do_wp_page(): an exclusive anonymous page is reused, not copied";
pub const LEAK: &str = "Documentation/dev-tools/kmemleak.rst; drivers/media/common/videobuf2, put_userptr and the error paths of get_userptr";
pub const UDMABUF_HUGETLB: &str =
    "mm/memfd.c, memfd_alloc_folio(); mm/hugetlb.c, alloc_hugetlb_folio_reserve()";
