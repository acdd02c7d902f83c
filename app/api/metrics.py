"""`GET /metrics`, for Prometheus."""

from fastapi import APIRouter, Request, Response

from app.api.deps import ServiceDep

router = APIRouter(tags=["operations"])


@router.get(
    "/metrics",
    summary="Samples for Prometheus",
    response_class=Response,
    responses={
        200: {
            "description": "Text, or OpenMetrics with exemplars by `Accept`.",
            "content": {"text/plain": {}, "application/openmetrics-text": {}},
        }
    },
)
async def metrics(request: Request, service: ServiceDep) -> Response:
    """Answered at exactly this path, without a redirect."""
    body, media_type = await service.render_metrics(request.headers.get("accept", ""))
    return Response(body, headers={"Content-Type": media_type})
