// verifiers checks a Certeus log with packages that were not written for it: golang.org/x/mod/sumdb/note and
// golang.org/x/mod/sumdb/tlog, unmodified. What is Certeus' own, the rebuilding of a log entry from an event, is written here from
// docs/log-format.md alone.
//
//	verifiers log   -url URL -key FILE [-old FILE] [-save FILE]   the whole log: signature, every tile, every entry, growth
//	verifiers event -event FILE -proof FILE -key FILE             one event, offline
//
// Exit status: 0 verified, 1 not verified.
package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "not verified: %v\n", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		return errors.New("usage: verifiers log|event FLAGS")
	}
	flags := flag.NewFlagSet(args[0], flag.ExitOnError)
	url := flags.String("url", "", "the log, such as http://localhost:8000/log/default")
	key := flags.String("key", "", "file with the log's verifier keys, one per line")
	old := flags.String("old", "", "file with an older checkpoint that the log must have grown from")
	save := flags.String("save", "", "file to write the verified checkpoint to")
	event := flags.String("event", "", "file with the event's bytes")
	proof := flags.String("proof", "", "file with the event's tlog-proof")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	keys, err := readKeys(*key)
	if err != nil {
		return err
	}
	switch args[0] {
	case "log":
		return verifyLog(*url, keys, *old, *save)
	case "event":
		return verifyEvent(*event, *proof, keys)
	default:
		return fmt.Errorf("unknown command %q", args[0])
	}
}

// readKeys takes the Ed25519 keys of a file; sumdb/note knows no other algorithm and says so.
func readKeys(path string) (note.Verifiers, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var known []note.Verifier
	for line := range strings.Lines(string(text)) {
		if v, err := note.NewVerifier(strings.TrimSpace(line)); err == nil {
			known = append(known, v)
		}
	}
	if len(known) == 0 {
		return nil, fmt.Errorf("%s holds no Ed25519 key", path)
	}
	return note.VerifierList(known...), nil
}

type checkpoint struct {
	origin string
	tree   tlog.Tree
}

// openCheckpoint verifies a signed checkpoint (C2SP tlog-checkpoint).
func openCheckpoint(signed []byte, keys note.Verifiers) (checkpoint, error) {
	n, err := note.Open(signed, keys)
	if err != nil {
		return checkpoint{}, fmt.Errorf("checkpoint: %w", err)
	}
	lines := strings.Split(n.Text, "\n")
	if len(lines) != 4 || lines[3] != "" {
		return checkpoint{}, fmt.Errorf("checkpoint has not three lines: %q", n.Text)
	}
	if n.Sigs[0].Name != lines[0] {
		return checkpoint{}, fmt.Errorf("origin is %q, and the signer %q", lines[0], n.Sigs[0].Name)
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	if err != nil {
		return checkpoint{}, err
	}
	root, err := tlog.ParseHash(lines[2])
	if err != nil {
		return checkpoint{}, err
	}
	return checkpoint{origin: lines[0], tree: tlog.Tree{N: size, Hash: root}}, nil
}

// tileReader fetches tiles by their C2SP paths, which leave out the height that sumdb's own paths have.
type tileReader struct{ url string }

func (r tileReader) Height() int                     { return 8 }
func (r tileReader) SaveTiles([]tlog.Tile, [][]byte) {}
func (r tileReader) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	data := make([][]byte, len(tiles))
	for i, tile := range tiles {
		path := strings.Replace(tile.Path(), "tile/8/", "tile/", 1)
		body, err := get(r.url + "/" + path)
		if err != nil {
			return nil, err
		}
		data[i] = body
	}
	return data, nil
}

func get(url string) ([]byte, error) {
	reply, err := http.Get(url)
	if err != nil {
		return nil, err
	}
	defer reply.Body.Close()
	body, err := io.ReadAll(reply.Body)
	if err == nil && reply.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", url, reply.Status, body)
	}
	return body, err
}

func verifyLog(url string, keys note.Verifiers, old, save string) error {
	url = strings.TrimSuffix(url, "/")
	signed, err := get(url + "/checkpoint")
	if err != nil {
		return err
	}
	now, err := openCheckpoint(signed, keys)
	if err != nil {
		return err
	}
	// TileHashReader checks every tile it reads against the tree's root.
	hashes := tlog.TileHashReader(now.tree, tileReader{url})
	for first := int64(0); first < now.tree.N; first += 256 {
		if err := verifyBundle(url, now.tree.N, first, hashes); err != nil {
			return err
		}
	}
	if old != "" {
		signed, err := os.ReadFile(old)
		if err != nil {
			return err
		}
		before, err := openCheckpoint(signed, keys)
		if err != nil {
			return err
		}
		proof, err := tlog.ProveTree(now.tree.N, before.tree.N, hashes)
		if err != nil {
			return fmt.Errorf("growth from %d to %d: %w", before.tree.N, now.tree.N, err)
		}
		if err := tlog.CheckTree(proof, now.tree.N, now.tree.Hash, before.tree.N, before.tree.Hash); err != nil {
			return fmt.Errorf("growth from %d to %d: %w", before.tree.N, now.tree.N, err)
		}
		fmt.Printf("verified growth from %d to %d\n", before.tree.N, now.tree.N)
	}
	if save != "" {
		if err := os.WriteFile(save, signed, 0o644); err != nil {
			return err
		}
	}
	fmt.Printf("verified %d entries of %s, root %v\n", now.tree.N, now.origin, now.tree.Hash)
	return nil
}

// verifyBundle checks that the entries of one bundle (C2SP tlog-tiles) have the leaf hashes that the tree has.
func verifyBundle(url string, size, first int64, hashes tlog.HashReader) error {
	count := min(size-first, 256)
	tile := tlog.Tile{H: 8, L: -1, N: first / 256, W: int(count)}
	path := strings.Replace(tile.Path(), "tile/8/data/", "tile/entries/", 1)
	bundle, err := get(url + "/" + path)
	if err != nil {
		return err
	}
	indexes := make([]int64, count)
	for i := range indexes {
		indexes[i] = tlog.StoredHashIndex(0, first+int64(i))
	}
	leaves, err := hashes.ReadHashes(indexes)
	if err != nil {
		return err
	}
	for i, leaf := range leaves {
		if len(bundle) < 2 || len(bundle) < 2+int(binary.BigEndian.Uint16(bundle)) {
			return fmt.Errorf("%s ends within entry %d", path, i)
		}
		length := int(binary.BigEndian.Uint16(bundle))
		if tlog.RecordHash(bundle[2:2+length]) != leaf {
			return fmt.Errorf("entry %d is not what the tree has", first+int64(i))
		}
		bundle = bundle[2+length:]
	}
	if len(bundle) != 0 {
		return fmt.Errorf("%s holds more than %d entries", path, count)
	}
	return nil
}

// verifyEvent checks one event against a proof file (C2SP tlog-proof).
func verifyEvent(eventPath, proofPath string, keys note.Verifiers) error {
	event, err := os.ReadFile(eventPath)
	if err != nil {
		return err
	}
	file, err := os.ReadFile(proofPath)
	if err != nil {
		return err
	}
	head, signed, found := bytes.Cut(file, []byte("\n\n"))
	lines := strings.Split(string(head), "\n")
	if !found || len(lines) < 3 || lines[0] != "c2sp.org/tlog-proof@v1" {
		return errors.New("not a tlog-proof file")
	}
	extra, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(lines[1], "extra "))
	if err != nil || !strings.HasPrefix(lines[1], "extra ") {
		return errors.New("the proof has no extra data")
	}
	index, err := strconv.ParseInt(strings.TrimPrefix(lines[2], "index "), 10, 64)
	if err != nil {
		return err
	}
	var path tlog.RecordProof
	for _, line := range lines[3:] {
		hash, err := tlog.ParseHash(line)
		if err != nil {
			return err
		}
		path = append(path, hash)
	}
	checkpoint, err := openCheckpoint(signed, keys)
	if err != nil {
		return err
	}
	entry, err := rebuildEntry(extra, event)
	if err != nil {
		return err
	}
	tree := checkpoint.tree
	if err := tlog.CheckRecord(path, tree.N, tree.Hash, index, tlog.RecordHash(entry)); err != nil {
		return fmt.Errorf("event at index %d of %d: %w", index, tree.N, err)
	}
	fmt.Printf("verified event at index %d of %d in %s\n", index, tree.N, checkpoint.origin)
	return nil
}

// rebuildEntry computes the log entry of an event from its bytes and the proof's extra data.
func rebuildEntry(extra, event []byte) ([]byte, error) {
	if len(extra) < 1+32+4 || extra[0] != 1 {
		return nil, errors.New("extra data of an unknown kind")
	}
	salt, head := extra[1:33], extra[33:]
	if length := binary.BigEndian.Uint32(head[len(head)-4:]); int(length) != len(event) {
		return nil, fmt.Errorf("the event has %d bytes, and the proof is for %d", len(event), length)
	}
	hash := sha256.New()
	hash.Write([]byte("certeus/entry/v1\x00"))
	hash.Write(salt)
	hash.Write(head)
	hash.Write(event)
	return hash.Sum(nil), nil
}
