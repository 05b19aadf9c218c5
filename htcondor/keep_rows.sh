#!/bin/bash
# keep_rows.sh SLUG
# PRE script of every evaluate node, on the access point: a model that failed resumes from the rows
# that its job returned, those of records beside its first one (SLUG+steps-50.csv, records/names.py)
# too. No slug has a `+`.
set -eu
kept=resume/$1/previous
rm -rf "$kept" && mkdir -p "$kept"
cd results
find records -name "$1.csv" -o -name "$1.json" -o -name "$1+*.csv" -o -name "$1+*.json" | while read -r file; do
    cp --parents "$file" "../$kept"
done
