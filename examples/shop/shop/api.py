"""Django REST framework: send a task, and ask for its result."""

from rest_framework import serializers, status
from rest_framework.decorators import api_view
from rest_framework.response import Response
from rest_framework.reverse import reverse

from celeriac.result import AsyncResult

from .tasks import add


class NumbersSerializer(serializers.Serializer):
    x = serializers.IntegerField()
    y = serializers.IntegerField()


@api_view(["POST"])
def add_numbers(request):
    numbers = NumbersSerializer(data=request.data)
    numbers.is_valid(raise_exception=True)
    result = add.delay(**numbers.validated_data)
    url = reverse("task", [result.id], request=request)
    return Response({"task_id": result.id, "url": url}, status.HTTP_202_ACCEPTED)


@api_view(["GET"])
def task(request, task_id):
    result = AsyncResult(task_id)
    return Response({"task_id": task_id, "state": result.state, "result": result.result if result.successful() else None})
