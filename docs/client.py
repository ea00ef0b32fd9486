"""Enhances the rows of an .npy file, or a text, through a running viscache server.

    pip install grpcio grpcio-tools googleapis-common-protos numpy
    python -m grpc_tools.protoc -I proto --python_out=. --grpc_python_out=. proto/viscache/v1/*.proto
    PYTHONPATH=. python docs/client.py 127.0.0.1:50051 photos "a dog barking"
    PYTHONPATH=. python docs/client.py 127.0.0.1:50051 photos queries.npy enhanced.npy
"""

import sys

import grpc
import numpy
from viscache.v1 import cache_pb2, cache_pb2_grpc, types_pb2

address, cache_name, query = sys.argv[1:4]
channel = grpc.insecure_channel(address, options=[("grpc.max_receive_message_length", 1 << 30)])
cache = cache_pb2_grpc.CacheServiceStub(channel)
request = cache_pb2.EnhanceRequest(cache=cache_name, return_neighbors=True)
if query.endswith(".npy"):
    rows = numpy.load(query).astype("<f4")
    request.vectors.CopyFrom(types_pb2.Tensor(dtype=types_pb2.DTYPE_F32, shape=rows.shape, data=rows.tobytes()))
else:
    part = types_pb2.Part(media=types_pb2.Media(text=query))
    request.queries.append(types_pb2.Query(parts=[part]))

reply = cache.Enhance(request, timeout=30)
for number, result in enumerate(reply.results):
    if result.status.code:
        print(f"query {number} failed: {result.status.message}")
        continue
    print(f"query {number}: cosine {result.cosine:.4f}, best score {result.max_score:.4f}")
    for n in result.neighbors[:5]:
        print(f"  {n.weight:.4f}  {n.score:.4f}  {n.uri}")
enhanced = numpy.frombuffer(reply.vectors.data, "<f4").reshape(reply.vectors.shape)
print("enhanced", enhanced.shape, "norms", numpy.linalg.norm(enhanced, axis=1)[:3])
if len(sys.argv) > 4:
    numpy.save(sys.argv[4], enhanced)
