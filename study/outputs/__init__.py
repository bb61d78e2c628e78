"""A study's folder: what is written there, and read again.

folder.py              open the folder; JSON and Parquet files in it
leaderboard_files.py   leaderboard.parquet, .csv, .md
ablation_files.py      ablation.parquet, .csv, .md
prediction_tables.py   predictions, curves, landscape, errors, confusions
provenance.py          run.json, configs/ID.json
adapter.py             an adapter: the trained lane and the texts it classifies by
adapter_files.py       adapters/RANK
trackers.py            runs of TensorBoard, MLflow, Weights & Biases
results.py             all of these read again, for the report
"""
