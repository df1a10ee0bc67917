"""Packets in and out: Kafka, replay, memory."""
