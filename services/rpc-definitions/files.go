package main

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// The files below the folder.
const (
	brokerFolder      = "broker"
	definitionsFile   = "definitions.json"
	urlFile           = "amqp-url"
	authorizationFile = "authorization.json"
)

// write brings all files up to date and reports whether any was written. The definitions come
// last: if the program is interrupted, the next run finds hashes of other passwords and replaces
// them.
func (s *settings) write() (changed bool, err error) {
	passwords := map[string]string{}
	for _, name := range slices.Concat([]string{serverUser, operatorUser}, s.clients) {
		passwords[name] = s.password(name)
		wrote, err := replace(filepath.Join(s.folder, name, urlFile), []byte(s.urls(name, passwords[name])+"\n"))
		if err != nil {
			return changed, err
		}
		changed = changed || wrote
	}
	rules, err := json.Marshal(map[string]any{"methods": map[string][]string{"*": s.clients}})
	if err != nil {
		return changed, err
	}
	wrote, err := replace(filepath.Join(s.folder, serverUser, authorizationFile), append(rules, '\n'))
	if err != nil {
		return changed, err
	}
	changed = changed || wrote

	path := filepath.Join(s.folder, brokerFolder, definitionsFile)
	hashes := existingHashes(path)
	text, err := s.define(func(user string) string {
		switch password, known := passwords[user]; {
		case !known: // guest
			return ""
		case isHashOf(hashes[user], password):
			return hashes[user]
		default:
			return newHash(password)
		}
	})
	if err != nil {
		return changed, err
	}
	wrote, err = replace(path, text)
	return changed || wrote, err
}

// password returns the password of the user's file, or a new one.
func (s *settings) password(name string) string {
	text, err := os.ReadFile(filepath.Join(s.folder, name, urlFile)) //nolint:gosec // the operator names the folder
	if err == nil && !s.rotate {
		first, _, _ := strings.Cut(strings.TrimSpace(string(text)), ",")
		if u, err := url.Parse(first); err == nil && u.User.Username() == name {
			if password, ok := u.User.Password(); ok && password != "" {
				return password
			}
		}
	}
	return rand.Text()
}

// urls returns the broker's URLs with a user.
func (s *settings) urls(name, password string) string {
	all := make([]string, len(s.brokers))
	for i, broker := range s.brokers {
		u := url.URL{Scheme: broker.Scheme, Host: broker.Host, User: url.UserPassword(name, password), RawQuery: broker.RawQuery}
		if s.vhost != "/" {
			u = *u.JoinPath(url.PathEscape(s.vhost))
		}
		all[i] = u.String()
	}
	return strings.Join(all, ",")
}

// existingHashes returns the hashes of the passwords in definitions, none if there are no
// definitions.
func existingHashes(path string) map[string]string {
	text, err := os.ReadFile(path) //nolint:gosec // the operator names the folder
	var d definitions
	if err != nil || json.Unmarshal(text, &d) != nil {
		return nil
	}
	hashes := make(map[string]string, len(d.Users))
	for _, u := range d.Users {
		hashes[u.Name] = u.PasswordHash
	}
	return hashes
}

// replace writes a file at once, under its name, unless it has this content already. Everyone may
// read it: the broker and the services run as users that this program does not know, and each
// folder is a volume that only its readers mount.
func replace(path string, content []byte) (wrote bool, err error) {
	const everyone, enter = 0o644, 0o755
	present, err := os.ReadFile(path) //nolint:gosec // the operator names the folder
	switch {
	case err == nil && bytes.Equal(present, content):
		return false, nil
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return false, fmt.Errorf("definitions: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), enter); err != nil { //nolint:gosec // see above
		return false, fmt.Errorf("definitions: %w", err)
	}
	fresh := path + ".new"
	if err := os.WriteFile(fresh, content, everyone); err != nil { //nolint:gosec // see above
		return false, fmt.Errorf("definitions: %w", err)
	}
	if err := os.Rename(fresh, path); err != nil { //nolint:gosec // the operator names the folder
		return false, fmt.Errorf("definitions: %w", err)
	}
	return true, nil
}
