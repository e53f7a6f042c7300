"""REST routes for configuring instances. Keys go in and never come out again except masked."""

from typing import Annotated, Any

from fastapi import Body, Path, Query, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from omni.errors import RecordNotFound
from omni.ports import InstanceStore
from omni.web.auth import keyed_router
from omni.web.context import context_of
from omni.web.errors import documented
from omni.web.instance_forms import (
    SUPPORTED_CHANNELS,
    InstanceChange,
    InstanceForm,
    InstanceReply,
    changed_instance_values,
    new_instance_values,
    show_instance,
)
from omni.web.store_calls import MAX_OFFSET

router = keyed_router("/instances", tag="instances")

Name = Annotated[str, Path(description="Name of a configured instance.")]
_CHANGE_BODY = {
    "requestBody": {"content": {"application/json": {"schema": InstanceChange.model_json_schema()}}},
}


class SupportedChannels(BaseModel):
    """The channels an instance may be of."""

    supported_channels: list[str] = Field(description="Values of `channel_type`.")
    total_channels: int = Field(description="How many there are.")


@router.get("/supported-channels", summary="List the channels instances may be of", response_model=SupportedChannels)
async def list_supported_channels() -> SupportedChannels:
    """List the values `channel_type` may have."""
    return SupportedChannels(supported_channels=list(SUPPORTED_CHANNELS), total_channels=len(SUPPORTED_CHANNELS))


@router.post(
    "",
    status_code=201,
    summary="Configure a new instance",
    response_model=InstanceReply,
    response_model_exclude_unset=True,
    responses=documented(409, 413),
)
async def create_instance(request: Request, form: InstanceForm) -> Response:
    """Store a new instance, which replaces the default one if it is to be that; 409 when the name is taken. Inputs that mean nothing here are named in `ignored_fields`."""
    context = context_of(request)
    store = context.parts.instances
    values, ignored_fields = new_instance_values(form)

    reply = await context.store_calls.answer(lambda: show_instance(store.create(values), ignored_fields=ignored_fields))
    reply.status_code = 201
    context.instance_changed(form.name)
    return reply


@router.get("", summary="List instances", response_model=list[InstanceReply])
async def list_instances(
    request: Request,
    skip: Annotated[int, Query(ge=0, le=MAX_OFFSET, description="Instances to leave out at the beginning.")] = 0,
    limit: Annotated[int, Query(ge=1, le=1000, description="Most instances to list.")] = 100,
) -> Response:
    """List instances in the order they were made, keys masked."""
    context = context_of(request)
    store = context.parts.instances
    return await context.store_calls.answer(
        lambda: [show_instance(row) for row in store.list_rows(limit=limit, offset=skip)]
    )


@router.get("/{name}", summary="Show an instance", response_model=InstanceReply, responses=documented(404))
async def get_instance(request: Request, name: Name) -> Response:
    """Show one instance, keys masked."""
    context = context_of(request)
    return await context.store_calls.answer(lambda: show_instance(_row(context.parts.instances, name)))


@router.put(
    "/{name}",
    summary="Change an instance",
    response_model=InstanceReply,
    responses=documented(404, 413),
    openapi_extra=_CHANGE_BODY,
)
async def update_instance(request: Request, name: Name, wanted: Annotated[dict[str, Any], Body()]) -> Response:
    """Change the fields given. A field that comes back as it was shown, masked keys included, is left as it is."""
    context = context_of(request)
    store = context.parts.instances

    def change() -> dict[str, Any]:
        row = _row(store, name)
        values, ignored_fields = changed_instance_values(wanted, row)
        if values:
            row = store.update(name, values)
        return show_instance(row, ignored_fields=ignored_fields)

    reply = await context.store_calls.answer(change)
    context.instance_changed(name)
    return reply


@router.post(
    "/{name}/set-default",
    summary="Make an instance the default one",
    response_model=InstanceReply,
    responses=documented(404),
)
async def set_default_instance(request: Request, name: Name) -> Response:
    """Make this instance the default one, and no other."""
    context = context_of(request)
    store = context.parts.instances
    reply = await context.store_calls.answer(lambda: show_instance(store.update(name, {"is_default": True})))
    context.instance_changed(name)
    return reply


@router.delete("/{name}", status_code=204, summary="Remove an instance", responses=documented(404))
async def delete_instance(request: Request, name: Name) -> Response:
    """Remove an instance and its users. Its traces stay."""
    context = context_of(request)
    await context.store_calls.run(lambda: context.parts.instances.delete(name))
    context.instance_changed(name)
    return Response(status_code=204)


def _row(store: InstanceStore, name: str) -> dict[str, Any]:
    row = store.get_row(name)
    if row is None:
        raise RecordNotFound(f"Instance '{name}' not found")
    return row
