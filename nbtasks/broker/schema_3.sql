-- Version 3: large pieces lie in files (wire/segments.py), and payloads holds references to them.

-- Which files are needed. Only references, and the ends of very long frames, are as short as this.
CREATE INDEX payloads_by_file ON payloads (seq, n, data) WHERE length(data) <= 32;
