// SPDX-License-Identifier: GPL-2.0-only
/*
 * /dev/pinbed: raw requests and events of the device, ballast, dma-bufs.
 */
#include <linux/capability.h>
#include <linux/err.h>
#include <linux/fs.h>
#include <linux/module.h>
#include <linux/poll.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "pinbed.h"
#include "pinbed_export.h"

#define PINBED_IOC_EXEC \
	_IOWR(PINBED_IOC_MAGIC, PINBED_NR_EXEC, struct pinbed_exec)
#define PINBED_IOC_BALLAST \
	_IOWR(PINBED_IOC_MAGIC, PINBED_NR_BALLAST, struct pinbed_ballast)
#define PINBED_IOC_EXPORT \
	_IOWR(PINBED_IOC_MAGIC, PINBED_NR_EXPORT, struct pinbed_export)
#define PINBED_IOC_MOVE \
	_IOWR(PINBED_IOC_MAGIC, PINBED_NR_MOVE, struct pinbed_move)
#define PINBED_IOC_IMPORT \
	_IOWR(PINBED_IOC_MAGIC, PINBED_NR_IMPORT, struct pinbed_import)

/**
 * struct pinbed_file - An open /dev/pinbed.
 * @pdev: The device.
 * @position: Of the next event to read; protected by the event queue's lock.
 * @lock: See below.
 * @ballast: Memory held until close.
 * @importer: A dma-buf followed until close.
 */
struct pinbed_file {
	struct pinbed_device *pdev;
	u64 position;
	/* Protects @ballast. */
	struct mutex lock;
	struct pinbed_ballast_pages ballast;
	struct pinbed_importer importer;
};

static int pinbed_open(struct inode *inode, struct file *file)
{
	struct pinbed_device *pdev = container_of(file->private_data,
						  struct pinbed_device, misc);
	struct pinbed_file *pf;

	if (pinbed_is_dead(pdev))
		return -ENODEV;
	pf = pinbed_zalloc_obj(*pf);
	if (!pf)
		return -ENOMEM;
	pf->pdev = pinbed_device_get(pdev);
	pf->position = pinbed_event_position(pdev);
	mutex_init(&pf->lock);
	INIT_LIST_HEAD(&pf->ballast.pages);
	pinbed_importer_init(&pf->importer, pdev);
	file->private_data = pf;
	return nonseekable_open(inode, file);
}

static int pinbed_close(struct inode *inode, struct file *file)
{
	struct pinbed_file *pf = file->private_data;

	pinbed_importer_exit(&pf->importer);
	pinbed_ballast_drop(&pf->ballast);
	pinbed_device_put(pf->pdev);
	kfree(pf);
	return 0;
}

/* Zero when there is an event to take. */
static int pinbed_event_wait(struct pinbed_file *pf, bool nonblock)
{
	int pending = pinbed_event_pending(pf->pdev, &pf->position);

	if (!pending && nonblock)
		return -EAGAIN;
	while (!pending) {
		if (wait_event_interruptible(pf->pdev->event_wait,
					     pinbed_event_pending(pf->pdev,
								  &pf->position)))
			return -ERESTARTSYS;
		pending = pinbed_event_pending(pf->pdev, &pf->position);
	}
	return min(pending, 0);
}

static ssize_t pinbed_read(struct file *file, char __user *buffer, size_t count,
			   loff_t *ppos)
{
	struct pinbed_file *pf = file->private_data;
	struct pinbed_event event;
	size_t done = 0;
	int ret;

	if (count < sizeof(event))
		return -EINVAL;

	while (done + sizeof(event) <= count) {
		if (pinbed_event_take(pf->pdev, &pf->position, &event)) {
			if (copy_to_user(buffer + done, &event, sizeof(event)))
				return done ? done : -EFAULT;
			done += sizeof(event);
			continue;
		}
		if (done)
			break;
		ret = pinbed_event_wait(pf, file->f_flags & O_NONBLOCK);
		if (ret < 0)
			return ret;
	}
	return done;
}

static __poll_t pinbed_poll(struct file *file, poll_table *wait)
{
	struct pinbed_file *pf = file->private_data;
	int pending;

	poll_wait(file, &pf->pdev->event_wait, wait);
	pending = pinbed_event_pending(pf->pdev, &pf->position);
	if (pending > 0)
		return EPOLLIN | EPOLLRDNORM;
	return pending < 0 ? EPOLLERR | EPOLLHUP : 0;
}

static long pinbed_exec(struct pinbed_file *pf, struct pinbed_exec __user *arg)
{
	struct pinbed_request *req;
	struct pinbed_exec exec;
	long ret;

	/* The request may name any memory, as /dev/mem does. */
	if (!capable(CAP_SYS_RAWIO))
		return -EPERM;
	if (copy_from_user(&exec, arg, sizeof(exec)))
		return -EFAULT;
	if (exec.queue >= PINBED_QUEUE_EVENT || exec.reserved ||
	    !exec.request_length || exec.request_length > PINBED_EXEC_MAX ||
	    !exec.response_length || exec.response_length > PINBED_EXEC_MAX)
		return -EINVAL;

	req = pinbed_request_new(exec.request_length, exec.response_length);
	if (!req)
		return -ENOMEM;
	ret = -EFAULT;
	if (copy_from_user(req->request, u64_to_user_ptr(exec.request),
			   exec.request_length))
		goto put;

	ret = pinbed_request_submit(pf->pdev, exec.queue, req);
	if (ret)
		goto put;
	/* The queue keeps its own reference if this is killed. */
	ret = wait_for_completion_killable(&req->answer);
	if (ret)
		goto put;
	ret = req->error;
	if (ret)
		goto put;

	exec.response_length = req->answered;
	if (copy_to_user(u64_to_user_ptr(exec.response), req->response,
			 req->answered) ||
	    copy_to_user(arg, &exec, sizeof(exec)))
		ret = -EFAULT;
put:
	pinbed_request_put(req);
	return ret;
}

static long pinbed_ballast(struct pinbed_file *pf,
			   struct pinbed_ballast __user *arg)
{
	struct pinbed_ballast ballast;
	long ret;

	if (copy_from_user(&ballast, arg, sizeof(ballast)))
		return -EFAULT;

	ret = mutex_lock_interruptible(&pf->lock);
	if (ret)
		return ret;
	ret = pinbed_ballast_take(&pf->ballast, ballast.leave);
	ballast.held = pf->ballast.bytes;
	mutex_unlock(&pf->lock);

	if (!ret && copy_to_user(arg, &ballast, sizeof(ballast)))
		ret = -EFAULT;
	return ret;
}

/* What takes memory that is not accounted, or takes it away from others. */
static bool pinbed_needs_admin(unsigned int cmd)
{
	return cmd == PINBED_IOC_BALLAST || cmd == PINBED_IOC_EXPORT ||
	       cmd == PINBED_IOC_MOVE;
}

static long pinbed_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	struct pinbed_file *pf = file->private_data;

	if (pinbed_is_dead(pf->pdev))
		return -ENODEV;
	if (pinbed_needs_admin(cmd) && !capable(CAP_SYS_ADMIN))
		return -EPERM;
	switch (cmd) {
	case PINBED_IOC_EXEC:
		return pinbed_exec(pf, (void __user *)arg);
	case PINBED_IOC_BALLAST:
		return pinbed_ballast(pf, (void __user *)arg);
	case PINBED_IOC_EXPORT:
		return pinbed_ioctl_export(pf->pdev, (void __user *)arg);
	case PINBED_IOC_MOVE:
		return pinbed_ioctl_move((void __user *)arg);
	case PINBED_IOC_IMPORT:
		return pinbed_ioctl_import(&pf->importer, (void __user *)arg);
	default:
		return -ENOTTY;
	}
}

static const struct file_operations pinbed_fops = {
	.owner = THIS_MODULE,
	.open = pinbed_open,
	.release = pinbed_close,
	.read = pinbed_read,
	.poll = pinbed_poll,
	.unlocked_ioctl = pinbed_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
};

int pinbed_ctl_register(struct pinbed_device *pdev)
{
	int ret;

	pdev->dma = pinbed_dma_device_new_coherent(pdev, &pdev->vdev->dev,
						   "ctl");
	if (IS_ERR(pdev->dma)) {
		ret = PTR_ERR(pdev->dma);
		pdev->dma = NULL;
		return ret;
	}
	pdev->misc.minor = MISC_DYNAMIC_MINOR;
	pdev->misc.name = pdev->name;
	pdev->misc.fops = &pinbed_fops;
	pdev->misc.parent = &pdev->vdev->dev;
	ret = misc_register(&pdev->misc);
	if (ret)
		pinbed_dma_device_unregister(pdev->dma);
	return ret;
}

/* No file can be opened from now on. */
void pinbed_ctl_unregister(struct pinbed_device *pdev)
{
	misc_deregister(&pdev->misc);
	pinbed_dma_device_unregister(pdev->dma);
}
