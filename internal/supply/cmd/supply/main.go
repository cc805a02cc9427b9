// Command supply makes the files that tell users of the images where their parts come from:
//
//	supply sbom -image NAME -version V [-file PATH=LICENCE] PROGRAM…   the SBOM of an image
//	supply notices PACKAGE…                                           the notices of programs
//	supply image -tag NAME -created SECONDS                           a reproducible image
//
// The result goes to the standard output. image reads the output of docker save; its result is
// for docker load.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"rabbitmq-rpc/internal/supply"
)

func main() {
	if err := run(context.Background(), os.Args[1:], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "supply:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, in io.Reader, out io.Writer) error {
	if len(args) == 0 {
		return errors.New("want sbom, notices or image")
	}
	var result []byte
	var err error
	switch command, rest := args[0], args[1:]; command {
	case "sbom":
		result, err = sbom(rest)
	case "notices":
		result, err = supply.Notices(ctx, ".", rest...)
	case "image":
		return image(rest, in, out)
	default:
		return fmt.Errorf("want sbom, notices or image, not %q", command)
	}
	if err != nil {
		return err
	}
	_, err = out.Write(result)
	return err
}

func sbom(args []string) ([]byte, error) {
	var of supply.Image
	flags := flag.NewFlagSet("sbom", flag.ContinueOnError)
	flags.StringVar(&of.Name, "image", "", "the name of the image")
	flags.StringVar(&of.Version, "version", "", "the version of the image and its programs")
	flags.Func("file", "`PATH=LICENCE` of a file that is no program", func(value string) error {
		path, licence, found := strings.Cut(value, "=")
		if !found {
			return errors.New("want PATH=LICENCE")
		}
		of.Files = append(of.Files, supply.File{Path: path, Licence: licence})
		return nil
	})
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	of.Programs = flags.Args()
	return supply.SBOM(of)
}

func image(args []string, in io.Reader, out io.Writer) error {
	flags := flag.NewFlagSet("image", flag.ContinueOnError)
	tag := flags.String("tag", "", "the name of the image")
	created := flags.Int64("created", 0, "the time of all files, in seconds since 1970")
	if err := flags.Parse(args); err != nil {
		return err
	}
	return supply.Reproducible(in, out, *tag, time.Unix(*created, 0))
}
