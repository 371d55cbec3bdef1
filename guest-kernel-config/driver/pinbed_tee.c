// SPDX-License-Identifier: GPL-2.0-only
/*
 * The TEE: hands the calls of its clients, which come through the kernel's TEE
 * subsystem, to the device.
 */
#include <linux/err.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/uuid.h>
#include <linux/virtio_config.h>

#include "pinbed_tee.h"

/**
 * struct pinbed_tee_client - An open file of the TEE device.
 * @context: The device's name for it, never used again.
 * @close: Allocated beforehand, so that closing cannot fail for want of memory;
 * NULL once it is closed.
 */
struct pinbed_tee_client {
	u64 context;
	struct pinbed_request *close;
};

/*
 * How long closing waits for the device to close a client's sessions: one that is
 * slower does it later, or is reset.
 */
#define PINBED_TEE_CLOSE_TIMEOUT HZ

/* How long unbinding waits for the users of the TEE device. */
#define PINBED_TEE_UNREGISTER_TIMEOUT (HZ / 4)

static bool tee_killable = true;
module_param(tee_killable, bool, 0644);
MODULE_PARM_DESC(tee_killable, "A client that is killed does not wait for its call; 0: it does, as with OP-TEE");

/* Zero if the device has done what it answers at once. */
static int pinbed_tee_result(const struct pinbed_request *req)
{
	const struct pinbed_result_response *response = req->response;
	int ret = pinbed_request_result(req, sizeof(*response));

	if (ret)
		return ret;
	switch (le32_to_cpu(response->result)) {
	case PINBED_TEEC_SUCCESS:
		return 0;
	case PINBED_TEEC_ERROR_BAD_PARAMETERS:
		return -EINVAL;
	default:
		return -EPROTO;
	}
}

/* Makes a request that the device answers at once. */
static int pinbed_tee_tell(struct pinbed_device *pdev,
			   struct pinbed_request *req)
{
	int ret = pinbed_request_submit(pdev, PINBED_QUEUE_TEE, req);

	if (ret)
		return ret;
	wait_for_completion(&req->answer);
	return pinbed_tee_result(req);
}

static struct pinbed_request *
pinbed_tee_cancel_new(struct tee_context *ctx, u32 cancel_id, u32 session)
{
	struct pinbed_tee_client *client = ctx->data;
	struct pinbed_cancel_request *cancel;
	struct pinbed_request *req;

	req = pinbed_request_new(sizeof(*cancel),
				 sizeof(struct pinbed_result_response));
	if (!req)
		return NULL;
	pinbed_request_init(pinbed_tee_of(ctx)->pdev, req, PINBED_OP_CANCEL);
	cancel = req->request;
	cancel->context = cpu_to_le64(client->context);
	cancel->session = cpu_to_le32(session);
	cancel->cancel_id = cpu_to_le32(cancel_id);
	return req;
}

static int pinbed_tee_cancel_req(struct tee_context *ctx, u32 cancel_id,
				 u32 session)
{
	struct pinbed_request *req;
	int ret;

	req = pinbed_tee_cancel_new(ctx, cancel_id, session);
	if (!req)
		return -ENOMEM;
	ret = pinbed_tee_tell(pinbed_tee_of(ctx)->pdev, req);
	pinbed_request_put(req);
	return ret;
}

/*
 * Cancels the call of a client that is killed, and does not wait for the answer.
 * If it cannot be sent, the call ends when the context is closed.
 */
static void pinbed_tee_abandon(struct tee_context *ctx, u32 cancel_id,
			       u32 session)
{
	struct pinbed_request *req;

	req = pinbed_tee_cancel_new(ctx, cancel_id, session);
	if (!req)
		return;
	pinbed_request_try(pinbed_tee_of(ctx)->pdev, PINBED_QUEUE_TEE, req);
	pinbed_request_put(req);
}

static int pinbed_tee_close_session(struct tee_context *ctx, u32 session)
{
	struct pinbed_device *pdev = pinbed_tee_of(ctx)->pdev;
	struct pinbed_tee_client *client = ctx->data;
	struct pinbed_close_session_request *close;
	struct pinbed_request *req;
	int ret;

	req = pinbed_request_new(sizeof(*close),
				 sizeof(struct pinbed_result_response));
	if (!req)
		return -ENOMEM;
	pinbed_request_init(pdev, req, PINBED_OP_CLOSE_SESSION);
	close = req->request;
	close->context = cpu_to_le64(client->context);
	close->session = cpu_to_le32(session);
	/* Answered when the calls in the session have ended. */
	req->patient = true;
	ret = pinbed_request_submit(pdev, PINBED_QUEUE_TEE, req);
	if (!ret)
		ret = wait_for_completion_killable(&req->answer) ?:
		      pinbed_tee_result(req);
	pinbed_request_put(req);
	return ret;
}

static int pinbed_tee_fill_memref(struct pinbed_tee *tee,
				  struct pinbed_param *to,
				  const struct tee_param_memref *from)
{
	u64 handle = 0;
	int ret;

	if (from->shm) {
		ret = pinbed_tee_shm_handle(tee, from->shm, &handle);
		if (ret)
			return ret;
	}
	to->a = cpu_to_le64(from->shm_offs);
	to->b = cpu_to_le64(from->size);
	to->c = cpu_to_le64(handle);
	return 0;
}

static int pinbed_tee_fill_params(struct pinbed_tee *tee,
				  struct pinbed_param *to,
				  const struct tee_param *from, u32 count)
{
	u32 i;
	int ret;

	if (count > PINBED_PARAM_COUNT)
		return -EINVAL;
	for (i = 0; i < count; i++, to++, from++) {
		to->attr = cpu_to_le64(from->attr);
		switch (from->attr) {
		case PINBED_PARAM_NONE:
		case PINBED_PARAM_VALUE_OUTPUT:
			break;
		case PINBED_PARAM_VALUE_INPUT:
		case PINBED_PARAM_VALUE_INOUT:
			to->a = cpu_to_le64(from->u.value.a);
			to->b = cpu_to_le64(from->u.value.b);
			to->c = cpu_to_le64(from->u.value.c);
			break;
		case PINBED_PARAM_MEMREF_INPUT:
		case PINBED_PARAM_MEMREF_OUTPUT:
		case PINBED_PARAM_MEMREF_INOUT:
			ret = pinbed_tee_fill_memref(tee, to, &from->u.memref);
			if (ret)
				return ret;
			break;
		default:
			return -EINVAL;
		}
	}
	return 0;
}

static void pinbed_tee_read_params(struct tee_param *to,
				   const struct pinbed_param *from, u32 count)
{
	u32 i;

	for (i = 0; i < count; i++, to++, from++) {
		switch (to->attr) {
		case PINBED_PARAM_VALUE_OUTPUT:
		case PINBED_PARAM_VALUE_INOUT:
			to->u.value.a = le64_to_cpu(from->a);
			to->u.value.b = le64_to_cpu(from->b);
			to->u.value.c = le64_to_cpu(from->c);
			break;
		case PINBED_PARAM_MEMREF_OUTPUT:
		case PINBED_PARAM_MEMREF_INOUT:
			to->u.memref.size = le64_to_cpu(from->b);
			break;
		}
	}
}

/*
 * Makes a call, which takes as long as the trusted application likes. NULL if
 * the device died. A client that is killed does not wait: the request lives on
 * until it is answered, at the latest when the context is closed, and a session
 * that it still opens goes away then.
 */
static const struct pinbed_call_response *
pinbed_tee_call(struct tee_context *ctx, struct pinbed_request *req, u32 session,
		u32 cancel_id)
{
	struct pinbed_device *pdev = pinbed_tee_of(ctx)->pdev;

	req->patient = true;
	if (pinbed_request_submit(pdev, PINBED_QUEUE_TEE, req))
		return NULL;
	if (!READ_ONCE(tee_killable)) {
		wait_for_completion(&req->answer);
	} else if (wait_for_completion_killable(&req->answer)) {
		pinbed_tee_abandon(ctx, cancel_id, session);
		return NULL;
	}
	if (pinbed_request_result(req, sizeof(struct pinbed_call_response)))
		return NULL;
	return req->response;
}

static int pinbed_tee_open_session(struct tee_context *ctx,
				   struct tee_ioctl_open_session_arg *arg,
				   struct tee_param *param)
{
	struct pinbed_tee *tee = pinbed_tee_of(ctx);
	const struct pinbed_call_response *response;
	struct pinbed_tee_client *client = ctx->data;
	struct pinbed_open_session_request *open;
	struct pinbed_request *req;
	uuid_t uuid;
	int ret;

	if (pinbed_is_dead(tee->pdev))
		return -ENODEV;
	ret = tee_session_calc_client_uuid(&uuid, arg->clnt_login,
					   arg->clnt_uuid);
	if (ret)
		return ret;
	req = pinbed_request_new(sizeof(*open), sizeof(*response));
	if (!req)
		return -ENOMEM;
	pinbed_request_init(tee->pdev, req, PINBED_OP_OPEN_SESSION);
	open = req->request;
	open->context = cpu_to_le64(client->context);
	memcpy(open->uuid, arg->uuid, sizeof(open->uuid));
	export_uuid(open->client_uuid, &uuid);
	open->client_login = cpu_to_le32(arg->clnt_login);
	open->cancel_id = cpu_to_le32(arg->cancel_id);
	ret = pinbed_tee_fill_params(tee, open->params, param, arg->num_params);
	if (ret)
		goto put;

	response = pinbed_tee_call(ctx, req, 0, arg->cancel_id);
	if (response) {
		arg->session = le32_to_cpu(response->session);
		arg->ret = le32_to_cpu(response->result);
		arg->ret_origin = le32_to_cpu(response->origin);
		pinbed_tee_read_params(param, response->params, arg->num_params);
	} else {
		arg->ret = PINBED_TEEC_ERROR_COMMUNICATION;
		arg->ret_origin = PINBED_TEEC_ORIGIN_COMMS;
	}
put:
	pinbed_request_put(req);
	return ret;
}

static int pinbed_tee_invoke_func(struct tee_context *ctx,
				  struct tee_ioctl_invoke_arg *arg,
				  struct tee_param *param)
{
	struct pinbed_tee *tee = pinbed_tee_of(ctx);
	const struct pinbed_call_response *response;
	struct pinbed_tee_client *client = ctx->data;
	struct pinbed_invoke_request *invoke;
	struct pinbed_request *req;
	int ret;

	if (pinbed_is_dead(tee->pdev))
		return -ENODEV;
	req = pinbed_request_new(sizeof(*invoke), sizeof(*response));
	if (!req)
		return -ENOMEM;
	pinbed_request_init(tee->pdev, req, PINBED_OP_INVOKE);
	invoke = req->request;
	invoke->context = cpu_to_le64(client->context);
	invoke->session = cpu_to_le32(arg->session);
	invoke->function = cpu_to_le32(arg->func);
	invoke->cancel_id = cpu_to_le32(arg->cancel_id);
	ret = pinbed_tee_fill_params(tee, invoke->params, param,
				     arg->num_params);
	if (ret)
		goto put;

	response = pinbed_tee_call(ctx, req, arg->session, arg->cancel_id);
	if (response) {
		arg->ret = le32_to_cpu(response->result);
		arg->ret_origin = le32_to_cpu(response->origin);
		pinbed_tee_read_params(param, response->params, arg->num_params);
	} else {
		arg->ret = PINBED_TEEC_ERROR_COMMUNICATION;
		arg->ret_origin = PINBED_TEEC_ORIGIN_COMMS;
	}
put:
	pinbed_request_put(req);
	return ret;
}

static void pinbed_tee_get_version(struct tee_device *teedev,
				   struct tee_ioctl_version_data *vers)
{
	*vers = (struct tee_ioctl_version_data){
		.impl_id = PINBED_MAGIC,
		.gen_caps = TEE_GEN_CAP_GP | TEE_GEN_CAP_REG_MEM |
			    TEE_GEN_CAP_MEMREF_NULL,
	};
}

static int pinbed_tee_open(struct tee_context *ctx)
{
	struct pinbed_tee *tee = pinbed_tee_of(ctx);
	struct pinbed_close_context_request *close;
	struct pinbed_tee_client *client;

	if (pinbed_is_dead(tee->pdev))
		return -ENODEV;
	/* Registered memory may outlive the file, and keeps the context. */
	if (!try_module_get(THIS_MODULE))
		return -ENODEV;
	client = pinbed_zalloc_obj(*client);
	if (!client)
		goto put_module;
	client->close = pinbed_request_new(sizeof(*close),
					   sizeof(struct pinbed_result_response));
	if (!client->close)
		goto free;
	client->context = atomic64_inc_return(&tee->contexts);
	pinbed_request_init(tee->pdev, client->close, PINBED_OP_CLOSE_CONTEXT);
	close = client->close->request;
	close->context = cpu_to_le64(client->context);
	ctx->data = client;
	ctx->cap_memref_null = true;
	return 0;

free:
	kfree(client);
put_module:
	module_put(THIS_MODULE);
	return -ENOMEM;
}

static void pinbed_tee_close_context(struct tee_context *ctx)
{
	struct pinbed_device *pdev = pinbed_tee_of(ctx)->pdev;
	struct pinbed_tee_client *client = ctx->data;
	int ret;

	if (!client->close)
		return;
	ret = pinbed_request_submit(pdev, PINBED_QUEUE_TEE, client->close);
	if (!ret && wait_for_completion_timeout(&client->close->answer,
						PINBED_TEE_CLOSE_TIMEOUT))
		ret = pinbed_tee_result(client->close);
	/* A dead device knows no context. */
	if (ret && ret != -ENODEV)
		dev_warn_ratelimited(&pdev->vdev->dev,
				     "CLOSE_CONTEXT of %llu failed: %d\n",
				     client->context, ret);
	pinbed_request_put(client->close);
	client->close = NULL;
}

static void pinbed_tee_release(struct tee_context *ctx)
{
	pinbed_tee_close_context(ctx);
	kfree(ctx->data);
	ctx->data = NULL;
	/* Module exit waits for the TEE device's last user, and this is one. */
	module_put(THIS_MODULE);
}

static const struct tee_driver_ops pinbed_tee_ops = {
	.get_version = pinbed_tee_get_version,
	.open = pinbed_tee_open,
	PINBED_TEE_CLOSE_CONTEXT_OPS
	.release = pinbed_tee_release,
	.open_session = pinbed_tee_open_session,
	.close_session = pinbed_tee_close_session,
	.invoke_func = pinbed_tee_invoke_func,
	.cancel_req = pinbed_tee_cancel_req,
	.shm_register = pinbed_tee_shm_register,
	.shm_unregister = pinbed_tee_shm_unregister,
};

static const struct tee_desc pinbed_tee_desc = {
	.name = "pinbed",
	.ops = &pinbed_tee_ops,
	.owner = THIS_MODULE,
};

static void pinbed_tee_free(struct pinbed_tee *tee)
{
	pinbed_tee_heap_forget(tee);
	tee_shm_pool_free(tee->pool);
	xa_destroy(&tee->memories);
	pinbed_dma_device_unregister(tee->dma);
	put_device(tee->dma);
	pinbed_device_put(tee->pdev);
	kfree(tee);
}

/*
 * The TEE subsystem takes the device's node away, and then waits until nobody
 * has the TEE device open, memory registered with it or protected by it.
 */
static void pinbed_tee_unregister_work(struct work_struct *work)
{
	struct pinbed_tee *tee = container_of(work, struct pinbed_tee,
					      unregister);
	struct pinbed_device *pdev = pinbed_device_get(tee->pdev);

	tee_device_unregister(tee->teedev);
	pinbed_tee_free(tee);
	complete(&pdev->tee_gone);
	pinbed_device_put(pdev);
}

static struct pinbed_tee *pinbed_tee_new(struct pinbed_device *pdev)
{
	struct pinbed_tee *tee;
	int ret;

	tee = pinbed_zalloc_obj(*tee);
	if (!tee)
		return ERR_PTR(-ENOMEM);
	INIT_WORK(&tee->unregister, pinbed_tee_unregister_work);
	xa_init(&tee->memories);
	tee->manager.ops = &pinbed_tee_pool_ops;
	tee->manager.private_data = tee;
	tee->pool = pinbed_tee_pool_new(&tee->manager);
	if (IS_ERR(tee->pool)) {
		ret = PTR_ERR(tee->pool);
		goto free;
	}
	/* No child of the virtio device: it may outlive the binding. */
	tee->dma = pinbed_dma_device_new_coherent(pdev, NULL, "tee");
	if (IS_ERR(tee->dma)) {
		ret = PTR_ERR(tee->dma);
		goto free_pool;
	}
	tee->pdev = pinbed_device_get(pdev);
	return tee;

free_pool:
	tee_shm_pool_free(tee->pool);
free:
	kfree(tee);
	return ERR_PTR(ret);
}

int pinbed_tee_register(struct pinbed_device *pdev)
{
	struct pinbed_tee *tee;
	int ret;

	if (!virtio_has_feature(pdev->vdev, PINBED_F_TEE))
		return 0;
	tee = pinbed_tee_new(pdev);
	if (IS_ERR(tee))
		return PTR_ERR(tee);
	tee->teedev = tee_device_alloc(&pinbed_tee_desc, tee->dma, tee->pool,
				       tee);
	if (IS_ERR(tee->teedev)) {
		ret = PTR_ERR(tee->teedev);
		goto free;
	}
	ret = tee_device_register(tee->teedev);
	if (ret)
		goto unregister;
	ret = pinbed_tee_heap_register(tee);
	if (ret)
		goto unregister;
	pdev->tee = tee;
	return 0;

unregister:
	tee_device_unregister(tee->teedev);
free:
	pinbed_tee_free(tee);
	return ret;
}

/*
 * If nobody uses the TEE device, it is gone when this returns. Else its calls
 * fail from now on, and it goes with its last user.
 */
void pinbed_tee_unregister(struct pinbed_device *pdev)
{
	if (!pdev->tee)
		return;
	queue_work(pinbed_wq, &pdev->tee->unregister);
	wait_for_completion_timeout(&pdev->tee_gone, PINBED_TEE_UNREGISTER_TIMEOUT);
	pdev->tee = NULL;
}
