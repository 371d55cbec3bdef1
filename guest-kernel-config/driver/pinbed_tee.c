// SPDX-License-Identifier: GPL-2.0-only
/*
 * The TEE: hands the calls of its clients, which come through the kernel's TEE
 * subsystem, to the device.
 */
#include <linux/err.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/uuid.h>

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

/* Makes a request that the device answers at once, and understands its answer. */
static int pinbed_tee_tell(struct pinbed_device *pdev,
			   struct pinbed_request *req)
{
	const struct pinbed_result_response *response = req->response;
	int ret;

	ret = pinbed_request_submit(pdev, PINBED_QUEUE_TEE, req);
	if (ret)
		return ret;
	wait_for_completion(&req->answer);
	ret = pinbed_request_result(req, sizeof(*response));
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

static int pinbed_tee_cancel_req(struct tee_context *ctx, u32 cancel_id,
				 u32 session)
{
	struct pinbed_device *pdev = pinbed_tee_of(ctx)->pdev;
	struct pinbed_tee_client *client = ctx->data;
	struct pinbed_cancel_request *cancel;
	struct pinbed_request *req;
	int ret;

	req = pinbed_request_new(sizeof(*cancel),
				 sizeof(struct pinbed_result_response));
	if (!req)
		return -ENOMEM;
	pinbed_request_init(pdev, req, PINBED_OP_CANCEL);
	cancel = req->request;
	cancel->context = cpu_to_le64(client->context);
	cancel->session = cpu_to_le32(session);
	cancel->cancel_id = cpu_to_le32(cancel_id);
	ret = pinbed_tee_tell(pdev, req);
	pinbed_request_put(req);
	return ret;
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
	ret = pinbed_tee_tell(pdev, req);
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
 * the device did not take part in it. A client that is killed does not wait: the
 * request lives on until it is answered, at the latest when the context is
 * closed, and a session that it still opens goes away then.
 */
static const struct pinbed_call_response *
pinbed_tee_call(struct tee_context *ctx, struct pinbed_request *req, u32 session,
		u32 cancel_id)
{
	struct pinbed_device *pdev = pinbed_tee_of(ctx)->pdev;

	req->patient = true;
	if (pinbed_request_submit(pdev, PINBED_QUEUE_TEE, req))
		return NULL;
	if (wait_for_completion_killable(&req->answer)) {
		pinbed_tee_cancel_req(ctx, cancel_id, session);
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

	/*
	 * Registered memory outlives the file, and unregistering the TEE device
	 * waits for it without end: better that unloading is refused.
	 */
	if (!try_module_get(THIS_MODULE))
		return -ENODEV;
	client = kzalloc(sizeof(*client), GFP_KERNEL);
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
	ret = pinbed_tee_tell(pdev, client->close);
	/* EIO: the device is stopped, and knows no context since. */
	if (ret && ret != -EIO)
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
	/* Our code stays until the TEE device has no users, of whom we are one. */
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

int pinbed_tee_register(struct pinbed_device *pdev)
{
	struct pinbed_tee *tee;
	int ret;

	tee = kzalloc(sizeof(*tee), GFP_KERNEL);
	if (!tee)
		return -ENOMEM;
	tee->pdev = pdev;
	tee->manager.ops = &pinbed_tee_pool_ops;
	tee->manager.private_data = tee;
	xa_init(&tee->memories);
	tee->pool = pinbed_tee_pool_new(&tee->manager);
	if (IS_ERR(tee->pool)) {
		ret = PTR_ERR(tee->pool);
		goto free;
	}
	tee->teedev = tee_device_alloc(&pinbed_tee_desc, &pdev->vdev->dev,
				       tee->pool, tee);
	if (IS_ERR(tee->teedev)) {
		ret = PTR_ERR(tee->teedev);
		goto free_pool;
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
free_pool:
	tee_shm_pool_free(tee->pool);
free:
	kfree(tee);
	return ret;
}

/*
 * Waits until nobody has the TEE device open, memory shared with it or protected
 * by it; so nothing is left in the arrays.
 */
void pinbed_tee_unregister(struct pinbed_device *pdev)
{
	struct pinbed_tee *tee = pdev->tee;

	tee_device_unregister(tee->teedev);
	tee_shm_pool_free(tee->pool);
	xa_destroy(&tee->memories);
	kfree(tee);
}
