"""Recall@10 and queries/s of hnswlib and faiss on the rows and queries that the bench `nano` has written, one thread.

    python nano_peers.py FOLDER DIM      one JSON object a line
"""
import json, os, statistics, sys, time

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"
import numpy as np

folder, dim = sys.argv[1], int(sys.argv[2])
read = lambda name, kind: np.fromfile(os.path.join(folder, name), kind)
rows, queries = read("rows.f32", np.float32).reshape(-1, dim), read("queries.f32", np.float32).reshape(-1, dim)
truth = read("truth.u64", np.uint64).reshape(len(queries), -1).astype(np.int64)


def hnswlib_index():
    import hnswlib

    index = hnswlib.Index("ip", dim)
    index.init_index(len(rows), M=16, ef_construction=200)
    index.add_items(rows, num_threads=os.cpu_count())

    def search(ef):
        index.set_ef(ef)
        return index.knn_query(queries, 10, num_threads=1)[0]

    return search


def faiss_index():
    import faiss

    faiss.omp_set_num_threads(os.cpu_count())
    index = faiss.IndexHNSWFlat(dim, 16, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = 200
    index.add(rows)
    faiss.omp_set_num_threads(1)

    def search(ef):
        index.hnsw.efSearch = ef
        return index.search(queries, 10)[1]

    return search


for peer, make in (("hnswlib", hnswlib_index), ("faiss", faiss_index)):
    try:
        search = make()
    except ImportError:
        continue
    for ef in (16, 32, 64, 128, 256, 512):
        times = []
        for _ in range(5):
            begin = time.perf_counter()
            found = search(ef)
            times.append(time.perf_counter() - begin)
        hits = sum(len(set(a) & set(b)) for a, b in zip(found.astype(np.int64).tolist(), truth.tolist()))
        rate = len(queries) / statistics.median(times)
        print(json.dumps({"peer": peer, "ef": ef, "recall": hits / truth.size, "rate": rate}), flush=True)
