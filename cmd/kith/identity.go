package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	apiv1 "github.com/kith-im/kith/node/api/v1"
)

type deviceJSON struct {
	ID    string `json:"id"`
	Name  string `json:"name"`
	This  bool   `json:"this_device"`
	Added int64  `json:"added"`
}

func (k *kith) idCmd() *cobra.Command {
	return k.command(&cobra.Command{
		Use:   "id",
		Short: "Show my account: name, key fingerprint, devices",
	}, 0, 0, func(ctx context.Context, _ []string) error {
		c, err := k.dial()
		if err != nil {
			return err
		}
		id, err := c.GetIdentity(ctx, &apiv1.GetIdentityRequest{})
		if err != nil {
			return err
		}
		devices := []deviceJSON{}
		for _, d := range id.Devices {
			devices = append(devices, deviceJSON{d.Id, d.Name, d.ThisDevice, d.AddedMs})
		}
		k.print(struct {
			Name        string       `json:"name"`
			Fingerprint string       `json:"fingerprint"`
			Devices     []deviceJSON `json:"devices"`
		}{id.Name, id.Fingerprint, devices}, func(w io.Writer) {
			rows := [][]string{{"name", id.Name}, {"fingerprint", id.Fingerprint}}
			for _, d := range devices {
				text := d.ID
				if d.Name != "" {
					text += "  " + d.Name
				}
				if d.This {
					text += "  (this one)"
				}
				rows = append(rows, []string{"device", text})
			}
			table(w, rows...)
		})
		return nil
	})
}

func (k *kith) verifyCmd() *cobra.Command {
	var yes, no, qrCode bool
	c := &cobra.Command{
		Use:   "verify CONTACT [--yes | --no] [--qr]",
		Short: "Show the safety number shared with a contact, and mark it as compared",
		Long: `Show the safety number of a conversation. Compare it with what your contact
sees, over a channel where you know each other's voice or face. If both are the
same, nobody sits between you; then mark the contact with --yes.`,
	}
	c.Flags().BoolVar(&yes, "yes", false, "mark the contact as verified: the numbers were the same")
	c.Flags().BoolVar(&yes, "mark", false, "the same as --yes")
	c.Flags().BoolVar(&no, "no", false, "take the mark away")
	c.Flags().BoolVar(&qrCode, "qr", false, "show the number as a QR code too")
	_ = c.Flags().MarkHidden("mark")
	k.command(c, 1, 1, func(ctx context.Context, args []string) error {
		if yes && no {
			return usagef("use one of them", "--yes and --no exclude each other")
		}
		client, err := k.dial()
		if err != nil {
			return err
		}
		number, err := client.GetSafetyNumber(ctx, &apiv1.GetSafetyNumberRequest{Contact: args[0]})
		if err != nil {
			return err
		}
		contact := number.GetContact()
		if yes || no {
			res, err := client.SetVerified(ctx, &apiv1.SetVerifiedRequest{Contact: contact.GetId(), Verified: yes})
			if err != nil {
				return err
			}
			contact = res.GetContact()
		}
		var code string
		if qrCode {
			if code, err = halfBlocks(number.Qr); err != nil {
				return err
			}
		}
		k.print(struct {
			Contact contactJSON `json:"contact"`
			Number  string      `json:"number"`
			QR      string      `json:"qr"`
		}{toContact(contact), number.Number, number.Qr}, func(w io.Writer) {
			fmt.Fprintf(w, "%s\n\n%s%s\n\n", clean("Safety number with "+contact.GetName()+":"), code, inGroups(number.Number))
			if contact.GetVerified() {
				fmt.Fprintln(w, "Verified: you have compared this number.")
			} else {
				fmt.Fprintf(w, "Not verified yet. If %s sees the same number: kith verify %s --yes%s\n", clean(contact.GetName()), word(contact.GetName()), k.at())
			}
		})
		return nil
	})
	return k.completeContacts(c)
}

// inGroups sets a safety number in groups of five digits, six to a line.
func inGroups(number string) string {
	var out []byte
	n := 0
	for _, c := range []byte(number) {
		if c < '0' || c > '9' {
			continue
		}
		if n > 0 && n%30 == 0 {
			out = append(out, '\n')
		} else if n > 0 && n%5 == 0 {
			out = append(out, ' ')
		}
		out = append(out, c)
		n++
	}
	return string(out)
}
