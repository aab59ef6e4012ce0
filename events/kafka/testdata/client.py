"""Reads or writes one topic with kafka-python. Everything is JSON with base64 on stdin and stdout.

client.py read HOST:PORT TOPIC COUNT
client.py write HOST:PORT TOPIC < records
"""

import base64
import json
import sys

from kafka import KafkaConsumer, KafkaProducer, TopicPartition


def decode(text):
    return None if text is None else base64.b64decode(text)


def encode(data):
    return None if data is None else base64.b64encode(data).decode()


def read(addr, topic, count):
    consumer = KafkaConsumer(bootstrap_servers=addr, enable_auto_commit=False, consumer_timeout_ms=20000)
    partition = TopicPartition(topic, 0)
    consumer.assign([partition])
    consumer.seek_to_beginning(partition)
    out = []
    for record in consumer:
        headers = [{"key": k, "value": encode(v)} for k, v in record.headers]
        out.append({"key": encode(record.key), "value": encode(record.value), "headers": headers})
        if len(out) == count:
            break
    consumer.close()
    json.dump(out, sys.stdout)


def write(addr, topic):
    producer = KafkaProducer(bootstrap_servers=addr, acks="all")
    for record in json.load(sys.stdin):
        headers = [(h["key"], decode(h["value"])) for h in record["headers"]]
        producer.send(topic, key=decode(record["key"]), value=decode(record["value"]), headers=headers, partition=0).get(20)
    producer.close()


if sys.argv[1] == "read":
    read(sys.argv[2], sys.argv[3], int(sys.argv[4]))
else:
    write(sys.argv[2], sys.argv[3])
