"""Predict over the typed gRPC service of a model: `pip install 'loopline[grpc]'`.

The server describes its services by reflection, so nothing has to be generated. A program that
keeps calling one model may rather generate its messages from the same descriptors.
"""

import os

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from grpc_status import rpc_status

channel = grpc.insecure_channel(os.environ.get("GRPC", "127.0.0.1:8002"))
services = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
iris = services.FindServiceByName("loopline.v1.IrisService")
flower = {"sepal_length": 1.1, "sepal_width": 1.2, "petal_length": 1.4, "petal_width": 1.5}


def call(name, **fields):
    """Call a method of the service with the fields of its request."""
    method = iris.methods_by_name[name]
    request, answer = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
    run = channel.unary_unary(
        f"/{iris.full_name}/{name}",
        request_serializer=request.SerializeToString,
        response_deserializer=answer.FromString,
    )
    return run(request(**fields), timeout=10)


found = call("Predict", row=flower)
print("one row:", found.prediction, "version", found.version, "id", found.id)

told = call("Outcome", outcomes=[{"id": found.id, "outcome": "setosa"}])
print("outcome:", told.results[0].status)

del flower["petal_width"]
try:
    call("Predict", row=flower)
except grpc.RpcError as error:
    print("refused:", error.code().name)
    reason, fields = ErrorInfo(), BadRequest()
    for detail in rpc_status.from_call(error).details:
        if detail.Unpack(reason):
            print("  code", reason.reason)
        elif detail.Unpack(fields):
            for field in fields.field_violations:
                print("  field", field.field, field.description)
channel.close()
