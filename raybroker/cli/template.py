"""The commented `raybroker.toml` that `raybroker init` writes."""

from __future__ import annotations

STREAMS = {
    "ztf": """[surveys.ztf]
servers = "localhost:9092"              # bootstrap servers of the alert stream
topics = ["^ztf_[0-9]{8}_programid1$"]   # '^' starts a regular expression: a topic per night
group = "raybroker"                     # consumer group; workers of one group share the partitions
workers = 2                             # at most as many as the topic has partitions
# kafka = { "security.protocol" = "SASL_SSL", "sasl.password" = "${KAFKA_PASSWORD}" }  # any librdkafka option
""",
    "rubin": """[surveys.rubin]
servers = "localhost:9092"              # bootstrap servers of the alert stream
topics = ["lsst-alerts-v10.0"]          # '^' starts a regular expression
group = "raybroker"
workers = 2
# registry = "https://usdf-alert-schemas-dev.slac.stanford.edu"  # Schema Registry; schemas are cached for ever by id
# schemas = "schemas"                     # or a folder of .avsc files, MAJOR/MINOR/lsst.vMAJOR_MINOR.alert.avsc
# kafka = { "security.protocol" = "SASL_SSL", "sasl.mechanism" = "SCRAM-SHA-512", "sasl.username" = "group", "sasl.password" = "${KAFKA_PASSWORD}" }
""",
    "fink": """[surveys.fink]
servers = "localhost:9092"              # as your Fink credentials say
topics = ["fink_sn_candidates_ztf"]     # the Fink topics that you are subscribed to
group = "raybroker"                     # as your Fink credentials say
workers = 1
# kafka = { "security.protocol" = "SASL_PLAINTEXT", "sasl.username" = "me", "sasl.password" = "${KAFKA_PASSWORD}" }
""",
}
CUTS = {"ztf": '"real", "good_pixels", ', "rubin": '"rubin_flags", ', "fink": ""}

REST = """
[archive]
root = "raybroker-data"                 # everything that is received, computed and learned is kept here

[turn]                                  # a worker commits when the first of these is reached
seconds = 0.5
megabytes = 16.0
deadline_seconds = 60.0                 # a worker that overruns it is replaced, and the packet at fault found

[steps]
on = [{cuts}"basic", "early"]           # add "phases" for supernovae, "lightcurve" for 26 features per band (pip install raybroker[features])
paths = ["steps"]                       # your own steps: any .py file in this folder
# [steps.real]
# min_rb = 0.55                         # any step's settings go into a table of its name

# [catalogues.gcvs]                     # each alert is matched to its nearest source
# file = "gcvs.parquet"                 # CSV, Parquet or FITS; sorted once into the archive
# radius_arcsec = 1.5
# columns = ["VarType"]

[cds]
simbad = false                          # SIMBAD through the CDS X-match service, in bulk

[models.transient]                      # a model that learns from your labels while the night goes on
classes = ["supernova", "agn", "variable_star", "bogus"]
columns = ["basic.*", "early.*"]        # what it learns from: numbers that steps give
strategy = "margin"                     # what to ask next: margin, entropy, vote_entropy, band, ranked_batch ... (docs/how-to/strategy.md)
# budget = 40                           # answers asked for in one night; default: as many as people give
# faintest = 20.5                       # magnitude; what is fainter cannot be followed up, and is not asked

# [models.odd]                          # the strangest alerts first; it learns what you find interesting
# task = "anomaly"
# columns = ["basic.*"]

# [labels]
# rule = "majority"                     # where people disagree: newest (the default), first, majority, agreed
# [labels.catalogues.tns]               # a catalogue teaches, too, so many days late (docs/how-to/label.md)
# file = "tns_public_objects.csv"
# delay_days = 14
# model = "transient"
# classes = { "SN Ia" = "supernova", "SN II" = "supernova", "AGN" = "agn" }

[filters.bright]                        # a filter without code: SQL over all columns
where = "basic.magnitude < 18.5 and reliability > 0.8"
# topic = "raybroker.bright"

# [output]
# servers = "localhost:9092"            # our own Kafka: what passes a filter is sent to its topic here

[service]
host = "127.0.0.1"
port = 8000                             # labels need a token: RAYBROKER_TOKENS="ann:a-long-random-word"

[mlflow]
enabled = true
# tracking_uri = "http://localhost:5000"  # default: SQLite in the archive's folder
"""


def template(survey: str) -> str:
    """A complete settings file for one survey."""
    head = "# raybroker settings. `raybroker check` tries them, `raybroker run` runs them.\n\n"
    return head + STREAMS[survey] + REST.replace("{cuts}", CUTS[survey])
