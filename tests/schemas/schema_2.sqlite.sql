-- The tables of schema 2, as DCAF made them before batch strategies; statements end at a line of two dashes.
CREATE TABLE files (
path TEXT NOT NULL,
size BIGINT NOT NULL,
mtime_ns BIGINT NOT NULL,
problem TEXT,
PRIMARY KEY (path)
)
--
CREATE TABLE images (
uid TEXT NOT NULL,
path TEXT NOT NULL,
frame INTEGER,
state TEXT NOT NULL,
added DOUBLE NOT NULL,
info JSON NOT NULL,
shuffle DOUBLE NOT NULL,
readings INTEGER DEFAULT '0' NOT NULL,
disputed BOOLEAN DEFAULT 0 NOT NULL,
ranked_by TEXT,
label TEXT,
score DOUBLE,
entropy DOUBLE,
normalized_entropy DOUBLE,
mutual_information DOUBLE,
margin DOUBLE,
PRIMARY KEY (uid)
)
--
CREATE INDEX images_by_dispute ON images (state, disputed)
--
CREATE INDEX images_by_entropy ON images (state, entropy, shuffle, label, disputed, uid)
--
CREATE INDEX images_by_label ON images (state, label, shuffle, disputed, uid)
--
CREATE INDEX images_by_margin ON images (state, margin, shuffle, label, disputed, uid)
--
CREATE INDEX images_by_mutual_information ON images (state, mutual_information, shuffle, label, disputed, uid)
--
CREATE INDEX images_by_score ON images (state, score, shuffle, label, disputed, uid)
--
CREATE INDEX images_by_shuffle ON images (state, shuffle, label, disputed, uid)
--
CREATE INDEX images_by_state ON images (state, ranked_by, readings)
--
CREATE INDEX images_by_uid ON images (state, uid, label, disputed)
--
CREATE INDEX images_path ON images (path)
--
CREATE TABLE meta (
name TEXT NOT NULL,
value TEXT NOT NULL,
PRIMARY KEY (name)
)
--
CREATE TABLE annotations (
number INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
"key" TEXT NOT NULL,
uid TEXT NOT NULL,
reader TEXT NOT NULL,
label TEXT NOT NULL,
role TEXT NOT NULL,
blind BOOLEAN NOT NULL,
created DOUBLE NOT NULL,
document JSON NOT NULL,
UNIQUE ("key"),
FOREIGN KEY(uid) REFERENCES images (uid)
)
--
CREATE TRIGGER annotations_no_update BEFORE UPDATE ON annotations BEGIN SELECT RAISE(ABORT, 'annotations are append-only'); END
--
CREATE TRIGGER annotations_no_delete BEFORE DELETE ON annotations BEGIN SELECT RAISE(ABORT, 'annotations are append-only'); END
--
CREATE INDEX annotations_by_image ON annotations (uid, number)
--
CREATE INDEX annotations_by_reader ON annotations (reader, uid)
--
CREATE TABLE failures (
uid TEXT NOT NULL,
model_version TEXT NOT NULL,
created DOUBLE NOT NULL,
code TEXT NOT NULL,
message TEXT NOT NULL,
PRIMARY KEY (uid, model_version),
FOREIGN KEY(uid) REFERENCES images (uid)
)
--
CREATE TABLE label_notes (
uid TEXT NOT NULL,
tag TEXT NOT NULL,
info JSON NOT NULL,
PRIMARY KEY (uid, tag),
FOREIGN KEY(uid) REFERENCES images (uid)
)
--
CREATE TABLE leases (
uid TEXT NOT NULL,
reader TEXT NOT NULL,
expires DOUBLE NOT NULL,
PRIMARY KEY (uid),
FOREIGN KEY(uid) REFERENCES images (uid)
)
--
CREATE TABLE predictions (
uid TEXT NOT NULL,
model_version TEXT NOT NULL,
model_sha256 TEXT NOT NULL,
created DOUBLE NOT NULL,
label TEXT NOT NULL,
score DOUBLE,
entropy DOUBLE,
normalized_entropy DOUBLE,
mutual_information DOUBLE,
margin DOUBLE,
document JSON NOT NULL,
PRIMARY KEY (uid, model_version),
FOREIGN KEY(uid) REFERENCES images (uid)
)
--
CREATE INDEX predictions_by_version ON predictions (model_version, uid, label, normalized_entropy)
--
CREATE TABLE skips (
uid TEXT NOT NULL,
reader TEXT NOT NULL,
reason TEXT NOT NULL,
created DOUBLE NOT NULL,
PRIMARY KEY (uid, reader),
FOREIGN KEY(uid) REFERENCES images (uid)
)
