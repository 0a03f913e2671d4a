package machine

import (
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// logLimit bounds a log file; at most two are kept.
const logLimit = 1 << 20

// tailSize is how much of a log is kept in memory.
const tailSize = 64 << 10

// A boundedLog is a log file that what writes it (a guest, QEMU) cannot make
// grow without bound: when it is full it becomes NAME.1, and the NAME.1 before
// it is gone. A log that cannot be written is lost, and stops nothing.
type boundedLog struct {
	path string

	mu       sync.Mutex
	file     *os.File
	size     int64
	tail     []byte
	watchers map[*logWatcher]struct{}
}

// A logWatcher is given what is written from now on. One that does not keep up
// misses some.
type logWatcher struct {
	C       chan []byte
	dropped bool
}

// openLog opens a log. With more, it goes on with one that is there.
func openLog(path string, more bool) (*boundedLog, error) {
	l := &boundedLog{path: path, watchers: map[*logWatcher]struct{}{}}
	if !more {
		return l, l.open(os.O_TRUNC)
	}
	if err := l.open(os.O_APPEND); err != nil {
		return nil, err
	}
	info, err := l.file.Stat()
	if err != nil {
		l.file.Close()
		return nil, err
	}
	l.size = info.Size()
	return l, nil
}

func (l *boundedLog) open(how int) (err error) {
	l.size = 0
	l.file, err = os.OpenFile(l.path, os.O_WRONLY|os.O_CREATE|how|unix.O_NOFOLLOW, 0o600)
	return err
}

// Write never fails: whoever is logged must not be stopped by a full disk.
func (l *boundedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file != nil {
		if l.size+int64(len(p)) > logLimit && l.size > 0 {
			l.file.Close()
			l.file = nil
			if os.Rename(l.path, l.path+".1") == nil {
				_ = l.open(os.O_TRUNC)
			}
		}
		if l.file != nil {
			n, _ := l.file.Write(p)
			l.size += int64(n)
		}
	}
	l.tail = append(l.tail, p[max(0, len(p)-tailSize):]...)
	if n := len(l.tail); n > tailSize {
		l.tail = append(l.tail[:0], l.tail[n-tailSize:]...)
	}
	for w := range l.watchers {
		select {
		case w.C <- append([]byte(nil), p...):
		default:
			w.dropped = true
		}
	}
	return len(p), nil
}

// last returns the end of what was written, at most n bytes.
func (l *boundedLog) last(n int) []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]byte(nil), l.tail[max(0, len(l.tail)-n):]...)
}

// watch returns what was written last, and a watcher for what will be.
func (l *boundedLog) watch() ([]byte, *logWatcher) {
	l.mu.Lock()
	defer l.mu.Unlock()
	w := &logWatcher{C: make(chan []byte, 64)}
	if l.watchers != nil {
		l.watchers[w] = struct{}{}
	} else {
		close(w.C)
	}
	return append([]byte(nil), l.tail...), w
}

func (l *boundedLog) unwatch(w *logWatcher) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.watchers, w)
}

// Close ends the watchers too.
func (l *boundedLog) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for w := range l.watchers {
		close(w.C)
	}
	l.watchers = nil
	if l.file == nil {
		return nil
	}
	err := l.file.Close()
	l.file = nil
	return err
}
