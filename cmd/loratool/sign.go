package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"aead.dev/minisign"
	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
	"github.com/urfave/cli/v2"
	"golang.org/x/term"
)

// A signature of a .lora file is a file beside it in the format of minisign, over the file id
// (spec/FORMAT.md, section 13): its 64 hex digits and a line feed. The file id covers every byte.

// signatureSuffix makes the name of a signature from that of its file.
const signatureSuffix = ".minisig"

type signOptions struct {
	common
	manifestOption
	key, newKey, out, comment string
	force                     bool
}

func signCommand(t *terminal) *cli.Command {
	o := new(signOptions)
	return &cli.Command{
		Name:      "sign",
		Usage:     "sign a .lora file with a minisign key",
		ArgsUsage: "FILE --key SECRET",
		Description: "Verifies FILE, and writes FILE.minisig: a signature of its file id that verify --key checks. The keys are those of minisign; " +
			"--new-key NAME makes a pair, the secret NAME.key without a password and the public NAME.pub. loratool asks for the password of " +
			"an encrypted key on the terminal, and reads it from standard input where that is none.\n\n" +
			"minisign itself verifies the file id: loratool verify --json FILE prints it, and a file with its 64 digits and a line feed is the message.",
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "key", Usage: "the secret key, in the file `SECRET`", Destination: &o.key},
			&cli.StringFlag{Name: "new-key", Usage: "make a pair of keys, `NAME`.key and NAME.pub, and sign nothing", Destination: &o.newKey},
			&cli.StringFlag{Name: "comment", Usage: "a trusted comment, `TEXT` that is signed too (default: the time and the name of FILE)", Destination: &o.comment},
			&cli.StringFlag{Name: "out", Aliases: []string{"o"}, Usage: "write the signature to `OUT` (default: FILE" + signatureSuffix + ")", Destination: &o.out},
			&cli.BoolFlag{Name: "force", Usage: "replace a signature", Destination: &o.force},
			o.manifestFlag(),
		}, o.flags()...),
		Action: func(c *cli.Context) error { return runSign(c, t, o) },
	}
}

func runSign(c *cli.Context, t *terminal, o *signOptions) error {
	switch {
	case o.newKey != "" && (o.key != "" || c.NArg() > 0):
		return usagef("loratool sign --new-key NAME", "--new-key makes keys and signs nothing")
	case o.newKey != "":
		return makeKeys(t, o)
	case c.NArg() != 1 || o.key == "":
		return usagef("loratool sign FILE --key SECRET", "sign needs one .lora file and the secret key")
	case strings.ContainsAny(o.comment, "\r\n"):
		return usagef("--comment is one line of text", "the comment has a line feed")
	}
	limit, err := o.maxManifest()
	if err != nil {
		return err
	}
	summary, err := verifyFile(c, format.ReaderOptions{Workers: o.workers, MaxManifestBytes: limit})
	if err != nil {
		return err
	}
	key, err := readSecret(t, o.key)
	if err != nil {
		return err
	}
	file := c.Args().First()
	comment := o.comment
	if comment == "" {
		comment = fmt.Sprintf("%s, %s", clean(filepath.Base(file)), time.Now().UTC().Format("2006-01-02 15:04:05 UTC"))
	}
	out := o.out
	if out == "" {
		out = file + signatureSuffix
	}
	message := minisign.NewReader(strings.NewReader(signedMessage(summary)))
	if _, err := io.Copy(io.Discard, message); err != nil {
		return err
	}
	text := message.SignWithComments(key, comment, "signature of the file id of a .lora file")
	if err := writeSmall(out, text, 0o644, o.force); err != nil {
		return err
	}
	document := map[string]any{"out": out, "file_id": summary.FileID, "key_id": keyID(key.ID()), "trusted_comment": comment}
	return t.show("sign", o.json, document, o.summary(func() {
		t.line("signed %s with key %s: %s", file, keyID(key.ID()), out)
	}))
}

// signedMessage is the text that a signature signs.
func signedMessage(s *format.Summary) string { return s.FileID + "\n" }

// keyID is the name of a key, as minisign prints it.
func keyID(id uint64) string { return fmt.Sprintf("%016X", id) }

// makeKeys writes a new pair of keys.
func makeKeys(t *terminal, o *signOptions) error {
	public, secret, err := minisign.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	secretText, err := secret.MarshalText()
	if err != nil {
		return err
	}
	publicText, err := public.MarshalText()
	if err != nil {
		return err
	}
	if err := writeSmall(o.newKey+".key", append(secretText, '\n'), 0o600, false); err != nil {
		return pathError{withoutForce(err), "--new-key"}
	}
	if err := writeSmall(o.newKey+".pub", append(publicText, '\n'), 0o644, false); err != nil {
		return pathError{withoutForce(errors.Join(err, os.Remove(o.newKey+".key"))), "--new-key"}
	}
	document := map[string]any{"secret": o.newKey + ".key", "public": o.newKey + ".pub", "key_id": keyID(public.ID()), "public_key": public.String()}
	return t.show("sign", o.json, document, o.summary(func() {
		t.line("made the keys %s.key, which is secret and has no password, and %s.pub: %s", o.newKey, o.newKey, public.String())
	}))
}

// writeSmall writes a key or a signature, whole or not at all.
func writeSmall(path string, content []byte, mode os.FileMode, replace bool) error {
	return writeWhole(fileio.Place{Path: path, Replace: replace, Known: isSmallText, Kind: "a signature"}, content, mode)
}

// maxKeyBytes bounds keys and signatures.
const maxKeyBytes = 1 << 12

// isSmallText reports whether a file looks like a signature of minisign, which --force may replace.
func isSmallText(path string) bool {
	text, err := readSmall(path)
	return err == nil && new(minisign.Signature).UnmarshalText(text) == nil
}

func readSmall(path string) ([]byte, error) {
	f, size, err := fileio.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if size > maxKeyBytes {
		return nil, fault.New(fault.Unsupported, "the file has %d bytes; a key or a signature of minisign has a few hundred", size).In(path)
	}
	return io.ReadAll(f)
}

// readSecret reads a secret key, with its password if it has one.
func readSecret(t *terminal, path string) (key minisign.PrivateKey, err error) {
	text, err := readSmall(path)
	if err != nil {
		return key, err
	}
	const hint = "loratool sign --new-key NAME makes a pair of keys; --key takes the secret one"
	if !minisign.IsEncrypted(text) {
		if err := key.UnmarshalText([]byte(strings.TrimSpace(string(text)))); err != nil {
			return key, fault.New(fault.Unsupported, "this is not a minisign secret key").In(path).WithHint(hint)
		}
		return key, nil
	}
	password, err := readPassword(t, path)
	if err != nil {
		return key, err
	}
	if key, err = minisign.DecryptKey(password, []byte(strings.TrimSpace(string(text)))); err != nil {
		return key, fault.New(fault.Check, "the password does not decrypt the key").In(path)
	}
	return key, nil
}

// readPassword asks for a password on the terminal, or reads a line of standard input.
func readPassword(t *terminal, path string) (string, error) {
	if fd := int(os.Stdin.Fd()); term.IsTerminal(fd) {
		fmt.Fprintf(t.err, "password of %s: ", clean(path))
		password, err := term.ReadPassword(fd)
		fmt.Fprintln(t.err)
		return string(password), err
	}
	line, err := bufio.NewReader(os.Stdin).ReadString('\n')
	if err != nil && err != io.EOF {
		return "", err
	}
	return strings.TrimRight(line, "\r\n"), nil
}

// signed is a signature that holds.
type signed struct {
	KeyID   string `json:"key_id"`
	Comment string `json:"trusted_comment"`
}

// checkSignature checks the signature in a file against a verified .lora file. key is a public key
// as text, or the path of one.
func checkSignature(ctx context.Context, summary *format.Summary, path, key string) (*signed, error) {
	public, err := publicKey(key)
	if err != nil {
		return nil, err
	}
	text, err := readSmall(path)
	if err != nil {
		return nil, fault.New(fault.Check, "there is no signature to check: %s", unreadable(path, err)).
			WithHint("ask whoever signed the file for its %s, and name it with --signature", signatureSuffix)
	}
	var s minisign.Signature
	if err := s.UnmarshalText(text); err != nil {
		return nil, fault.New(fault.Check, "this is not a minisign signature").In(path)
	}
	switch {
	case s.KeyID != public.ID():
		return nil, fault.New(fault.Check, "the signature was made with key %s, want key %s", keyID(s.KeyID), keyID(public.ID())).In(path)
	case !minisign.Verify(public, []byte(signedMessage(summary)), text):
		return nil, fault.New(fault.Check, "the signature belongs to another file; the id of this one is %s", summary.FileID).In(path).
			WithHint("do not trust the file: it, or its signature, is not what key %s signed", keyID(s.KeyID))
	}
	return &signed{keyID(s.KeyID), s.TrustedComment}, ctx.Err()
}

// unreadable says why a file cannot be read.
func unreadable(path string, err error) string {
	if errors.Is(err, fs.ErrNotExist) {
		return path + " does not exist"
	}
	return err.Error()
}

// publicKey reads a public key: its text, RW…, or a file that holds it.
func publicKey(key string) (minisign.PublicKey, error) {
	var public minisign.PublicKey
	text, err := []byte(key), error(nil)
	if public.UnmarshalText(text) == nil {
		return public, nil
	}
	if text, err = readSmall(key); err != nil {
		return public, err
	}
	if err := public.UnmarshalText([]byte(strings.TrimSpace(string(text)))); err != nil {
		return public, fault.New(fault.Unsupported, "this is not a minisign public key").In(key).
			WithHint("a public key is a line that begins with RW, below a comment")
	}
	return public, nil
}
